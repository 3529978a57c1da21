#!/usr/bin/env python3
"""Run a static x86-64 Linux program on Bochs' processor, which has AVX-512 wherever this runs.

usage: run_in_bochs.py PROGRAM [ARGUMENT...]

Needs the package bochscpu-python. The program gets memory, standard output and an exit status, and no other
service of an operating system: enough for tests/native/kernel_check. Its exit status becomes that of this.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import bochscpu
import bochscpu.cpu
import bochscpu.memory

PAGE = 4096
MEMORY = 192 << 20  # physical memory; virtual addresses are the same
PAGE_TABLES = 0x10000  # one page each for the levels 4, 3 and 2
SYSCALL_ENTRY = 0x20000
HEAP_END = MEMORY - (8 << 20)  # the stack is above
MAP_BASE = MEMORY // 2  # what mmap hands out starts here

# On SYSCALL the processor jumps here: wbinvd, whose hook does the work, then jmp rcx.
SYSCALL_CODE = bytes.fromhex("0f09ffe1")

CR0 = 0x80010033  # paging, write protection, x87, protected mode
CR4 = 0x00050620  # OSXSAVE, FSGSBASE, OSXMMEXCPT, OSFXSR, PAE
EFER = 0x00000D01  # NXE, LMA, LME, SCE
XCR0 = 0xE7  # x87, SSE, AVX and the three parts of AVX-512
CODE_SEGMENT, DATA_SEGMENT = 0xA09B, 0xC093  # attributes: 64-bit code and flat data for the kernel's ring


class Machine:
    """Memory, page tables and one processor in 64-bit mode, with the system calls that a C library makes."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, MEMORY)
        self.status: int | None = None
        self.failure = ""
        self.session = bochscpu.Session()
        self.session.missing_page_handler = self.on_missing_page
        self.mapped = MAP_BASE
        self.break_ = 0
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for address in range(0, MEMORY, PAGE):
            bochscpu.memory.page_insert(address, base + address)
        present_writable = 3
        self.write(PAGE_TABLES, struct.pack("<Q", PAGE_TABLES + PAGE | present_writable))
        self.write(PAGE_TABLES + PAGE, struct.pack("<Q", PAGE_TABLES + 2 * PAGE | present_writable))
        large_page = 1 << 7
        entries = [i << 21 | large_page | present_writable for i in range(MEMORY >> 21)]
        self.write(PAGE_TABLES + 2 * PAGE, struct.pack(f"<{len(entries)}Q", *entries))
        self.write(SYSCALL_ENTRY, SYSCALL_CODE)

    def write(self, address: int, data: bytes) -> None:
        self.memory[address : address + len(data)] = data

    def load(self, program: Path) -> int:
        """Copy the segments of a static program to their addresses; return where it starts."""
        image = program.read_bytes()
        magic, kind, machine = struct.unpack_from("<4s12xHH", image)
        if magic != b"\x7fELF" or (kind, machine) != (2, 62):
            raise SystemExit(f"{program}: expected a static x86-64 program")
        entry, headers = struct.unpack_from("<QQ", image, 24)
        size, count = struct.unpack_from("<HH", image, 54)
        for i in range(count):
            kind, _, offset, address, _, file_size, memory_size = struct.unpack_from(
                "<IIQQQQQ", image, headers + i * size
            )
            if kind == 1:
                self.write(address, image[offset : offset + file_size])
                self.break_ = max(self.break_, (address + memory_size + PAGE - 1) // PAGE * PAGE)
        self.headers = (self.address_of_headers(image, headers), size, count)
        return int(entry)

    @staticmethod
    def address_of_headers(image: bytes, headers: int) -> int:
        """Where the program headers lie once loaded: in the first segment, which starts with the file."""
        (address,) = struct.unpack_from("<Q", image, headers + 16)
        return int(address) + headers

    def make_stack(self, arguments: list[str]) -> int:
        """Arguments, an empty environment and the auxiliary vector; return the stack pointer."""
        top = MEMORY - PAGE
        pointers = []
        for argument in arguments:
            data = argument.encode() + b"\0"
            top -= len(data)
            self.write(top, data)
            pointers.append(top)
        top = (top - 16) // 16 * 16
        self.write(top, b"sixteen bytes of")
        random = top
        at_phdr, at_phent, at_phnum, at_pagesz, at_random = 3, 4, 5, 6, 25
        address, size, count = self.headers
        auxiliary = [at_phdr, address, at_phent, size, at_phnum, count, at_pagesz, PAGE, at_random, random]
        words = [len(pointers), *pointers, 0, 0, *auxiliary, 0, 0]
        stack = (top - 8 * len(words)) // 16 * 16
        self.write(stack, struct.pack(f"<{len(words)}Q", *words))
        return stack

    def run(self, entry: int, stack: int) -> int:
        """Start the processor; return the program's exit status."""
        state = bochscpu.State()
        bochscpu.cpu.set_long_mode(state)
        state.cr0, state.cr3, state.cr4, state.efer, state.xcr0 = CR0, PAGE_TABLES, CR4, EFER, XCR0
        state.rip, state.rsp, state.rflags = entry, stack, 2
        state.mxcsr, state.mxcsr_mask, state.fpcw, state.fptw = 0x1F80, 0xFFFF, 0x37F, 0xFFFF
        state.lstar, state.star = SYSCALL_ENTRY, 8 << 32
        state.cs = segment(8, CODE_SEGMENT)
        state.ss = state.ds = state.es = state.fs = state.gs = segment(16, DATA_SEGMENT)
        self.session.cpu.state = state
        hook = bochscpu.Hook()
        hook.cache_cntrl = self.on_system_call
        hook.exception = self.on_exception
        self.session.run([hook])
        if self.status is None:
            raise SystemExit(f"run_in_bochs: {self.failure or 'stopped'} at {self.session.cpu.rip:#x}")
        return self.status

    def fail(self, what: str) -> None:
        self.failure = self.failure or what
        self.session.stop()

    def on_missing_page(self, address: int) -> None:
        self.fail(f"no memory at {address:#x}")

    def on_exception(self, session: object, cpu: int, vector: int, code: int) -> None:
        self.fail(f"exception {vector}, code {code}, address {self.session.cpu.cr2:#x}")

    def on_system_call(self, session: object, cpu: int, what: int) -> None:
        """A system call: its number in rax, arguments in rdi, rsi, rdx; the result goes to rax."""
        registers = self.session.cpu
        calls: dict[int, Callable[[int, int, int], int]] = {
            1: self.write_file,
            9: self.map_memory,
            10: lambda *_: 0,  # mprotect
            11: lambda *_: 0,  # munmap
            12: self.set_break,
            20: self.write_vector,
            60: self.exit,
            158: self.set_thread_pointer,
            202: lambda *_: 0,  # futex: there is one thread, nobody waits
            231: self.exit,
            234: lambda *_: self.exit(128 + signal.SIGABRT),  # tgkill
        }
        call = calls.get(registers.rax)
        result = -errno.ENOSYS if call is None else call(registers.rdi, registers.rsi, registers.rdx)
        registers.rax = result % (1 << 64)

    def write_file(self, file: int, address: int, size: int) -> int:
        return os.write(file, self.memory[address : address + size]) if file in (1, 2) else -errno.EBADF

    def write_vector(self, file: int, address: int, count: int) -> int:
        parts = struct.unpack(f"<{2 * count}Q", self.memory[address : address + 16 * count])
        return sum(self.write_file(file, parts[i], parts[i + 1]) for i in range(0, 2 * count, 2))

    def map_memory(self, address: int, size: int, protection: int) -> int:
        start, end = self.mapped, self.mapped + (size + PAGE - 1) // PAGE * PAGE
        if end > HEAP_END:
            return -errno.ENOMEM
        self.mapped = end
        return start

    def set_break(self, address: int, *_: int) -> int:
        if self.break_ <= address <= MAP_BASE:
            self.break_ = address
        return self.break_

    def set_thread_pointer(self, code: int, address: int, _: int) -> int:
        arch_set_fs = 0x1002
        if code != arch_set_fs:
            return -errno.EINVAL
        self.session.cpu.fs = segment(16, DATA_SEGMENT, address)
        return 0

    def exit(self, status: int, *_: int) -> int:
        self.status = status & 0xFF
        self.session.stop()
        return 0


def segment(selector: int, attributes: int, base: int = 0) -> bochscpu.Segment:
    """A flat segment."""
    s = bochscpu.Segment()
    s.present, s.selector, s.base, s.limit, s.attr = True, selector, base, 0xFFFFFFFF, attributes
    return s


def main() -> int:
    """Load and run the program."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    machine = Machine()
    entry = machine.load(Path(sys.argv[1]))
    return machine.run(entry, machine.make_stack(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
