// The cases of a check shared out among processes, as many as there are cores.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

namespace cuda_check {

inline int core_count() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

// work(shard, file) in `shards` processes at a time; then, for one after another, what it printed and
// add(file) with what it wrote. The number of those that ended with anything but success.
inline int run_shards(int shards, const std::function<void(int, std::FILE*)>& work,
                      const std::function<void(std::FILE*)>& add) {
    struct Process {
        pid_t id;
        std::FILE *printed, *result;
    };
    std::vector<Process> processes;
    std::fflush(nullptr);
    for (int shard = 0; shard < shards; ++shard) {
        Process process{0, std::tmpfile(), std::tmpfile()};
        process.id = fork();
        if (process.id == 0) {
            dup2(fileno(process.printed), STDOUT_FILENO);
            dup2(fileno(process.printed), STDERR_FILENO);
            work(shard, process.result);
            std::exit(0);
        }
        processes.push_back(process);
    }
    int failed = 0;
    for (const Process& process : processes) {
        int status = -1;
        if (process.id < 0 || waitpid(process.id, &status, 0) < 0 || status != 0) ++failed;
        std::rewind(process.printed);
        for (int c; (c = std::fgetc(process.printed)) != EOF;) std::putchar(c);
        std::rewind(process.result);
        if (status == 0) add(process.result);
        std::fclose(process.printed);
        std::fclose(process.result);
    }
    return failed;
}

}  // namespace cuda_check
