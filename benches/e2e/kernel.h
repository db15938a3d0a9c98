/*
 * What the helpers of the comparison share: bpf(2) without a library, a hand-written instruction or two, the clock, and
 * ways to end with a sentence. The programs are so small that they are assembled here, as instructions: the
 * comparison then needs a C compiler and the kernel's headers, nothing else. Definitions that are younger than the
 * headers of Debian 12 are given by their number.
 */
#ifndef PODLANE_COMPARE_KERNEL_H
#define PODLANE_COMPARE_KERNEL_H

#include <errno.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* include/uapi/linux/bpf.h of Linux 6.6: tcx. */
#define ATTACH_TCX_INGRESS 46
#define TCX_NEXT (-1)
#define TCX_DROP 2

/* One BPF instruction each (Documentation/bpf/standardization/instruction-set.rst). */
#define INSN(c, d, s, o, i) ((struct bpf_insn){.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})
#define MOV_REG(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define MOV_IMM(d, i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define ADD_IMM(d, i) INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define ALU_IMM(op, d, i) INSN(BPF_ALU64 | (op) | BPF_K, d, 0, 0, i)
#define ALU_REG(op, d, s) INSN(BPF_ALU64 | (op) | BPF_X, d, s, 0, 0)
#define TO_BE16(d) INSN(BPF_ALU | BPF_END | BPF_TO_BE, d, 0, 0, 16)
#define TO_BE32(d) INSN(BPF_ALU | BPF_END | BPF_TO_BE, d, 0, 0, 32)
#define LOAD(size, d, s, o) INSN(BPF_LDX | BPF_MEM | (size), d, s, o, 0)
#define STORE(size, d, o, s) INSN(BPF_STX | BPF_MEM | (size), d, s, o, 0)
#define STORE_IMM(size, d, o, i) INSN(BPF_ST | BPF_MEM | (size), d, 0, o, i)
#define ATOMIC_ADD64(d, s) INSN(BPF_STX | BPF_ATOMIC | BPF_DW, d, s, 0, BPF_ADD)
#define JUMP_IF_GT(d, s, o) INSN(BPF_JMP | BPF_JGT | BPF_X, d, s, o, 0)
#define JUMP_IF_GE(d, s, o) INSN(BPF_JMP | BPF_JGE | BPF_X, d, s, o, 0)
#define JUMP_IF_EQ_IMM(d, i, o) INSN(BPF_JMP | BPF_JEQ | BPF_K, d, 0, o, i)
#define JUMP_IF_GT_IMM(d, i, o) INSN(BPF_JMP | BPF_JGT | BPF_K, d, 0, o, i)
#define JUMP_IF_LE_IMM(d, i, o) INSN(BPF_JMP | BPF_JLE | BPF_K, d, 0, o, i)
#define JUMP(o) INSN(BPF_JMP | BPF_JA, 0, 0, o, 0)
#define JUMP_IF_NE_IMM(d, i, o) INSN(BPF_JMP | BPF_JNE | BPF_K, d, 0, o, i)
#define CALL(helper) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, helper)
#define EXIT() INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
/* Two slots: the address of a map (MAP_FD), or of the first value of an array map (MAP_VALUE). */
#define MAP_FD(d, fd) INSN(BPF_LD | BPF_DW | BPF_IMM, d, BPF_PSEUDO_MAP_FD, 0, fd), INSN(0, 0, 0, 0, 0)
#define MAP_VALUE(d, fd) INSN(BPF_LD | BPF_DW | BPF_IMM, d, BPF_PSEUDO_MAP_VALUE, 0, fd), INSN(0, 0, 0, 0, 0)

/* Ends the process with one sentence on standard error. */
__attribute__((noreturn, format(printf, 1, 2))) static inline void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static inline int bpf(int command, union bpf_attr *attr)
{
    return (int)syscall(SYS_bpf, command, attr, sizeof(*attr));
}

/* Creates a map; ends the process when the kernel refuses. */
static inline int map_create(enum bpf_map_type type, uint32_t value_size, uint32_t entries)
{
    union bpf_attr attr = {.map_type = type, .key_size = 4, .value_size = value_size, .max_entries = entries};
    int fd = bpf(BPF_MAP_CREATE, &attr);
    if (fd < 0)
        fail("cannot create a BPF map of type %d: %s", type, strerror(errno));
    return fd;
}

static inline void map_update(int map, uint32_t key, const void *value)
{
    union bpf_attr attr = {.map_fd = (uint32_t)map, .key = (uintptr_t)&key, .value = (uintptr_t)value};
    if (bpf(BPF_MAP_UPDATE_ELEM, &attr))
        fail("cannot write a BPF map: %s", strerror(errno));
}

/* Reads the whole of a map's only value. */
static inline void map_read(int map, void *value)
{
    uint32_t key = 0;
    union bpf_attr attr = {.map_fd = (uint32_t)map, .key = (uintptr_t)&key, .value = (uintptr_t)value};
    if (bpf(BPF_MAP_LOOKUP_ELEM, &attr))
        fail("cannot read a BPF map: %s", strerror(errno));
}

static inline uint64_t map_read64(int map, uint32_t key)
{
    uint64_t value = 0;
    union bpf_attr attr = {.map_fd = (uint32_t)map, .key = (uintptr_t)&key, .value = (uintptr_t)&value};
    if (bpf(BPF_MAP_LOOKUP_ELEM, &attr))
        fail("cannot read a BPF map: %s", strerror(errno));
    return value;
}

static inline void map_write64(int map, uint32_t key, uint64_t value)
{
    map_update(map, key, &value);
}

/* Loads a program; ends the process with the verifier's words when the kernel refuses. */
static inline int program_load(enum bpf_prog_type type, uint32_t attach_type, const struct bpf_insn *insns, size_t count)
{
    static char log[16384];
    union bpf_attr attr = {
        .prog_type = type,
        .expected_attach_type = attach_type,
        .insns = (uintptr_t)insns,
        .insn_cnt = (uint32_t)count,
        .license = (uintptr_t)"GPL",
        .log_buf = (uintptr_t)log,
        .log_size = sizeof(log),
        .log_level = 1,
    };
    int fd = bpf(BPF_PROG_LOAD, &attr);
    if (fd < 0)
        fail("cannot load a BPF program: %s\n%s", strerror(errno), log);
    return fd;
}

/* Attaches a program to an interface by a link: it is gone when this process is, however it ends. */
static inline int link_create(int program, unsigned ifindex, uint32_t attach_type, uint32_t flags, const char *interface)
{
    union bpf_attr attr = {.link_create = {.prog_fd = (uint32_t)program,
                                           .target_ifindex = ifindex,
                                           .attach_type = attach_type,
                                           .flags = flags}};
    int fd = bpf(BPF_LINK_CREATE, &attr);
    if (fd < 0)
        fail("cannot attach a BPF program to %s: %s", interface, strerror(errno));
    return fd;
}

/* The index of an interface of this namespace. */
static inline unsigned interface_index(const char *name)
{
    unsigned index = if_nametoindex(name);
    if (!index)
        fail("there is no interface %s in this namespace", name);
    return index;
}

static inline double clock_s(clockid_t clock)
{
    struct timespec t = {0};
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Seconds of a clock that only goes forward. */
static inline double now_s(void)
{
    return clock_s(CLOCK_MONOTONIC);
}

static inline void sleep_s(double seconds)
{
    struct timespec t = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&t, &t) && errno == EINTR)
        ;
}

/* A number of a command line that must lie in [low, high]. */
static inline double number_argument(const char *text, double low, double high)
{
    char *end;
    double value = strtod(text, &end);
    if (*text == 0 || *end != 0 || !(value >= low && value <= high))
        fail("\"%s\" is not a number from %g to %g", text, low, high);
    return value;
}

#endif
