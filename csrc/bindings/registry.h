// Objects by name, each made once and kept until the process ends: tapes that outlive the module may refer to them.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "bindings/fork_safe_mutex.h"

namespace fusedrnn {

template <class T>
class Registry {
  public:
    static Registry& instance() {
        static auto* const only = new Registry;
        return *only;
    }
    // Null where there is none of this name.
    const T* find(const std::string& key) const {
        const std::lock_guard<std::mutex> lock(fork_safe_mutex(this));
        const auto found = objects_.find(key);
        return found == objects_.end() ? nullptr : found->second.get();
    }
    // Takes `made` if it is the first of its name; another stays with the caller, who gets the first.
    const T& add(const std::string& key, std::unique_ptr<const T>& made) {
        const std::lock_guard<std::mutex> lock(fork_safe_mutex(this));
        auto& place = objects_[key];
        if (place == nullptr) place = std::move(made);
        return *place;
    }

  private:
    Registry() = default;
    std::map<std::string, std::unique_ptr<const T>> objects_;
};

}  // namespace fusedrnn
