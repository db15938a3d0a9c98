/*
 * Frames for a measurement, and the two ways to make them: as xdp frames by a BPF program in a live-frame test run, and as
 * skbs from a packet socket.
 *
 * A mix has up to three sizes that follow each other in a pattern; frames differ in their UDP ports (flows) and in their
 * destination address (targets) if asked; and they carry the time of their making if asked, as eight bytes and their
 * complement, which together leave the UDP checksum what it is.
 */
#ifndef PODLANE_E2E_GENERATOR_H
#define PODLANE_E2E_GENERATOR_H

#include "frames.h"
#include <sys/prctl.h>
#include <sys/wait.h>

#define SIZES 3
#define PATTERN 12 /* frames after which the sizes of a mix repeat */
#define FLOW_PORT 0x2400 /* measured frames go to this UDP port and the 255 after it */
#define SOURCE_PORT 40000
#define TIME_AT HEADERS /* offset of the time in a frame; its complement follows */
#define BALANCE_AT (TIME_AT + 16)
#define BATCH_XDP 64

struct mix {
    unsigned sizes;           /* how many */
    unsigned length[SIZES];   /* bytes of a frame without FCS, ascending */
    unsigned until[SIZES];    /* frames of the pattern from the last one's on to this one have the size */
    uint32_t flows;           /* different UDP ports; 1 to 100,000 */
    uint32_t targets;         /* different destination addresses, `stride` apart, counted from that of the ends; a power of two */
    uint32_t stride;
    bool varied;              /* frames are made as if ports and addresses changed, though there may be one of each */
    bool times;               /* frames carry the time */
};

/* Words of the array that only the program writes; and in the array that only this process writes, nanoseconds from one frame to
 * the next: 0 for as many as possible, PAUSED for none. */
enum { GEN_OFFERED, GEN_NEXT, GEN_WORDS };
#define PAUSED ((uint64_t)1 << 62)

struct generator_maps {
    int state, interval;
};

static inline struct generator_maps generator_maps(void)
{
    return (struct generator_maps){map_create(BPF_MAP_TYPE_ARRAY, GEN_WORDS * 8, 1), map_create(BPF_MAP_TYPE_ARRAY, 8, 1)};
}

static inline bool mix_changes(const struct mix *mix)
{
    return mix->varied || mix->flows > 1 || mix->targets > 1;
}

/*
 * A frame of the mix's size number `size`. Where ports or addresses change from frame to frame, the word at BALANCE_AT is the
 * complement of their sum, so that the UDP checksum is right for all of them.
 */
static inline void mix_frame(uint8_t *frame, const struct mix *mix, unsigned size, const struct ends *ends)
{
    unsigned length = mix->length[size] - 34;
    uint8_t *udp = frame + 34, changing[8];
    frame_write(frame, mix->length[size], ends, FLOW_PORT, 0);
    memset(frame + TIME_AT, 0, 8);
    memset(frame + TIME_AT + 8, 0xff, 8);
    put16(frame + BALANCE_AT, 0);
    memcpy(changing, frame + 30, 8);
    if (mix_changes(mix))
        memset(frame + 30, 0, 8);
    put16(udp + 6, 0);
    uint32_t sum = sum16(udp, length, sum16(frame + 26, 8, 17 + length));
    put16(udp + 6, sum == 0xffff ? 0xffff : ~sum & 0xffff);
    memcpy(frame + 30, changing, 8);
    if (mix_changes(mix))
        put16(frame + BALANCE_AT, ~sum16(frame + 30, 8, 0) & 0xffff);
}

struct code {
    struct bpf_insn insns[512];
    size_t count;
};

static inline size_t emit(struct code *code, struct bpf_insn insn)
{
    if (code->count == ARRAY_LEN(code->insns))
        fail("the generating program is too long");
    code->insns[code->count] = insn;
    return code->count++;
}

/* Has the jump at `from` lead to the next instruction. */
static inline void land(struct code *code, size_t from)
{
    code->insns[from].off = (int16_t)(code->count - from - 1);
}

#define EMIT(...) \
    do { \
        const struct bpf_insn piece[] = {__VA_ARGS__}; \
        for (size_t at = 0; at < ARRAY_LEN(piece); at++) \
            emit(code, piece[at]); \
    } while (0)

/* Ends the run with XDP_DROP, which takes the frame back, while the next one is not due. R7 is the state. */
static inline void emit_pace(struct code *code, int interval)
{
    EMIT(MAP_VALUE(BPF_REG_1, interval), LOAD(BPF_DW, BPF_REG_8, BPF_REG_1, 0), MOV_REG(BPF_REG_1, BPF_REG_8),
         ALU_IMM(BPF_RSH, BPF_REG_1, 62), JUMP_IF_EQ_IMM(BPF_REG_1, 0, 2), MOV_IMM(BPF_REG_0, XDP_DROP), EXIT());
    size_t unpaced = emit(code, JUMP_IF_EQ_IMM(BPF_REG_8, 0, 0));
    EMIT(CALL(BPF_FUNC_ktime_get_ns), LOAD(BPF_DW, BPF_REG_1, BPF_REG_7, GEN_NEXT * 8),
         JUMP_IF_GE(BPF_REG_0, BPF_REG_1, 2), MOV_IMM(BPF_REG_0, XDP_DROP), EXIT(),
         /* What was missed for more than 100 µs is not made up for. */
         MOV_REG(BPF_REG_2, BPF_REG_0), ALU_REG(BPF_SUB, BPF_REG_2, BPF_REG_1),
         JUMP_IF_LE_IMM(BPF_REG_2, 100000, 1), MOV_REG(BPF_REG_1, BPF_REG_0),
         ALU_REG(BPF_ADD, BPF_REG_1, BPF_REG_8), STORE(BPF_DW, BPF_REG_7, GEN_NEXT * 8, BPF_REG_1));
    land(code, unpaced);
}

/* Makes the frame one of size number `size`, with all headers: pages come back as the forwarder left them. */
static inline void emit_size(struct code *code, const struct mix *mix, unsigned size, const struct ends *ends)
{
    uint8_t frame[FRAME_MAX];
    unsigned written = BALANCE_AT + 2;
    mix_frame(frame, mix, size, ends);
    if (mix->length[size] != mix->length[mix->sizes - 1])
        EMIT(MOV_REG(BPF_REG_1, BPF_REG_6),
             MOV_IMM(BPF_REG_2, (int)mix->length[size] - (int)mix->length[mix->sizes - 1]),
             CALL(BPF_FUNC_xdp_adjust_tail));
    EMIT(LOAD(BPF_W, BPF_REG_8, BPF_REG_6, offsetof(struct xdp_md, data)),
         LOAD(BPF_W, BPF_REG_3, BPF_REG_6, offsetof(struct xdp_md, data_end)), MOV_REG(BPF_REG_4, BPF_REG_8),
         ADD_IMM(BPF_REG_4, FRAME_SMALL), JUMP_IF_GE(BPF_REG_3, BPF_REG_4, 2), MOV_IMM(BPF_REG_0, XDP_ABORTED), EXIT());
    for (unsigned at = 0; at < written; at += 2) {
        int16_t half;
        memcpy(&half, frame + at, 2);
        EMIT(STORE_IMM(BPF_H, BPF_REG_8, (int16_t)at, half));
    }
}

/* R2 folded to 16 bits twice, by R3. */
static inline void emit_fold(struct code *code)
{
    for (int i = 0; i < 2; i++)
        EMIT(MOV_REG(BPF_REG_3, BPF_REG_2), ALU_IMM(BPF_RSH, BPF_REG_3, 16), ALU_IMM(BPF_AND, BPF_REG_2, 0xffff),
             ALU_REG(BPF_ADD, BPF_REG_2, BPF_REG_3));
    EMIT(ALU_IMM(BPF_XOR, BPF_REG_2, 0xffff), TO_BE16(BPF_REG_2));
}

/* R8 is the frame, R9 its number, R6 the sum of the words of its destination. */
static inline void emit_flow(struct code *code, const struct mix *mix)
{
    if (!mix_changes(mix))
        return;
    EMIT(MOV_REG(BPF_REG_1, BPF_REG_9), ALU_IMM(BPF_MOD, BPF_REG_1, (int)mix->flows), MOV_REG(BPF_REG_2, BPF_REG_1),
         ALU_IMM(BPF_AND, BPF_REG_1, 0xff), STORE(BPF_B, BPF_REG_8, 37, BPF_REG_1), ALU_IMM(BPF_RSH, BPF_REG_2, 8),
         ADD_IMM(BPF_REG_2, SOURCE_PORT), ALU_REG(BPF_ADD, BPF_REG_6, BPF_REG_1), ALU_REG(BPF_ADD, BPF_REG_6, BPF_REG_2),
         ADD_IMM(BPF_REG_6, FLOW_PORT), TO_BE16(BPF_REG_2), STORE(BPF_H, BPF_REG_8, 34, BPF_REG_2),
         MOV_REG(BPF_REG_2, BPF_REG_6));
    emit_fold(code);
    EMIT(STORE(BPF_H, BPF_REG_8, BALANCE_AT, BPF_REG_2));
}

static inline uint32_t address_of(const struct ends *ends)
{
    const uint8_t *ip = ends->target_ip;
    return (uint32_t)ip[0] << 24 | (uint32_t)ip[1] << 16 | (uint32_t)ip[2] << 8 | ip[3];
}

/* Another destination in a scattered order, and the header checksum that goes with it. */
static inline void emit_target(struct code *code, const struct mix *mix, const struct ends *ends, unsigned length)
{
    if (!mix_changes(mix))
        return;
    uint8_t frame[FRAME_MAX];
    struct ends nobody = *ends;
    memset(nobody.target_ip, 0, 4);
    frame_write(frame, length, &nobody, FLOW_PORT, 0);
    put16(frame + 24, 0);
    EMIT(MOV_REG(BPF_REG_1, BPF_REG_9), ALU_IMM(BPF_MUL, BPF_REG_1, 40503), ALU_IMM(BPF_RSH, BPF_REG_1, 4),
         ALU_IMM(BPF_AND, BPF_REG_1, (int)mix->targets - 1), ALU_IMM(BPF_MUL, BPF_REG_1, (int)mix->stride),
         ADD_IMM(BPF_REG_1, (int)address_of(ends)), MOV_REG(BPF_REG_2, BPF_REG_1), MOV_REG(BPF_REG_3, BPF_REG_1),
         TO_BE32(BPF_REG_1), STORE(BPF_W, BPF_REG_8, 30, BPF_REG_1), ALU_IMM(BPF_RSH, BPF_REG_2, 16),
         ALU_IMM(BPF_AND, BPF_REG_3, 0xffff), ALU_REG(BPF_ADD, BPF_REG_2, BPF_REG_3),
         MOV_REG(BPF_REG_6, BPF_REG_2), ADD_IMM(BPF_REG_2, (int)sum16(frame + 14, 20, 0)));
    emit_fold(code);
    EMIT(STORE(BPF_H, BPF_REG_8, 24, BPF_REG_2));
}

/* The program. */
static inline int generator_load(unsigned ifindex, struct generator_maps maps, const struct mix *mix, const struct ends *ends)
{
    static struct code program;
    struct code *code = &program;
    size_t done[SIZES] = {0};
    code->count = 0;
    EMIT(MOV_REG(BPF_REG_6, BPF_REG_1), MAP_VALUE(BPF_REG_7, maps.state));
    emit_pace(code, maps.interval);
    EMIT(LOAD(BPF_DW, BPF_REG_9, BPF_REG_7, GEN_OFFERED * 8));
    for (unsigned size = 0; size < mix->sizes; size++) {
        size_t other = 0;
        bool last = size + 1 == mix->sizes;
        if (!last) {
            EMIT(MOV_REG(BPF_REG_1, BPF_REG_9), ALU_IMM(BPF_MOD, BPF_REG_1, PATTERN));
            other = emit(code, JUMP_IF_GT_IMM(BPF_REG_1, (int)mix->until[size] - 1, 0));
        }
        emit_size(code, mix, size, ends);
        emit_target(code, mix, ends, mix->length[size]);
        done[size] = emit(code, JUMP(0));
        if (!last)
            land(code, other);
    }
    for (unsigned size = 0; size < mix->sizes; size++)
        land(code, done[size]);
    emit_flow(code, mix);
    if (mix->times)
        EMIT(CALL(BPF_FUNC_ktime_get_ns), STORE(BPF_DW, BPF_REG_8, TIME_AT, BPF_REG_0), ALU_IMM(BPF_XOR, BPF_REG_0, -1),
             STORE(BPF_DW, BPF_REG_8, TIME_AT + 8, BPF_REG_0));
    EMIT(ADD_IMM(BPF_REG_9, 1), STORE(BPF_DW, BPF_REG_7, GEN_OFFERED * 8, BPF_REG_9), MOV_IMM(BPF_REG_1, (int)ifindex),
         MOV_IMM(BPF_REG_2, 0), CALL(BPF_FUNC_redirect), EXIT());
    return program_load(BPF_PROG_TYPE_XDP, 0, code->insns, code->count);
}

/* Puts `count` frames on the interface by a live-frame test run; false when a signal ended it early. */
static inline bool generator_run(int program, const struct mix *mix, const struct ends *ends, uint32_t count)
{
    uint8_t frame[FRAME_MAX];
    mix_frame(frame, mix, mix->sizes - 1, ends);
    union bpf_attr attr = {.test = {.prog_fd = (uint32_t)program,
                                    .data_in = (uintptr_t)frame,
                                    .data_size_in = mix->length[mix->sizes - 1],
                                    .repeat = count,
                                    .flags = BPF_F_TEST_XDP_LIVE_FRAMES,
                                    .batch_size = BATCH_XDP}};
    if (bpf(BPF_PROG_TEST_RUN, &attr) == 0)
        return true;
    if (errno != EINTR)
        fail("the kernel refused a live-frame test run (Linux 5.18 or later?): %s", strerror(errno));
    return false;
}

#endif
