/*
 * The source of the comparison, run in the sending pod's namespace:
 *
 *   source xdp   IFACE ENDS WARMUP SECONDS    64-byte frames as xdp frames, as fast as one core makes them
 *   source ring  IFACE ENDS WARMUP SECONDS    the same as skbs, from a packet socket's transmit ring
 *   source mmsg  IFACE ENDS WARMUP SECONDS    the same as skbs, from a packet socket with sendmmsg
 *   source udp   IFACE ENDS WARMUP SECONDS    the same as skbs, from an ordinary UDP socket, through the pod's own stack
 *   source check IFACE ENDS                   the checked burst: CHECK_SKBS different skbs, then CHECK_XDPS xdp frames
 *
 * ENDS is SOURCE_MAC TARGET_MAC SOURCE_IP TARGET_IP. Prints `offered=FRAMES seconds=S busy=S`: what was handed to
 * the interface in SECONDS after WARMUP, of which it may have dropped some, and the CPU time of that. On a veth it
 * includes whatever the receiving end does with the frame in its XDP program and behind it.
 */
#define _GNU_SOURCE
#include "frames.h"
#include "check.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define BATCH 64 /* frames per system call, of every kind of source */

/* How long the source keeps sending after the window in which it counts, so that the sink's window is full too. */
#define AFTER_S 0.5

/* Frames offered within a window: from `warmup` after the first call until `length` later. */
struct tally {
    double warmup, length;      /* seconds */
    double started, opened;     /* seconds of now_s(); 0: not yet */
    uint64_t total, at_opening; /* frames */
    uint64_t counted;           /* frames of the window, once it is closed */
    double counted_s, busy_s;   /* its length, and the CPU time that the source took in it */
    double busy_at_opening;
    clockid_t cpu_clock; /* of the process that sends */
};

/* Takes note of frames just offered; false when it is time to stop. */
static bool tally_add(struct tally *tally, uint64_t frames)
{
    double now = now_s();
    tally->total += frames;
    if (tally->started == 0)
        tally->started = now;
    if (tally->opened == 0 && now - tally->started >= tally->warmup) {
        tally->opened = now;
        tally->at_opening = tally->total;
        tally->busy_at_opening = clock_s(tally->cpu_clock);
    }
    if (tally->counted_s == 0 && tally->opened != 0 && now - tally->opened >= tally->length) {
        tally->counted_s = now - tally->opened;
        tally->counted = tally->total - tally->at_opening;
        tally->busy_s = clock_s(tally->cpu_clock) - tally->busy_at_opening;
    }
    return now - tally->started < tally->warmup + tally->length + AFTER_S;
}

/*
 * The generating program: writes the frame, counts it, sends it out of the interface. The pages of live frames come back
 * as the forwarder left them, so every byte is written anew on each run (net/bpf/test_run.c keeps only the packet's
 * bounds).
 */
static int generator_load(unsigned ifindex, int counter, const uint8_t *frame)
{
    struct bpf_insn insns[32 + FRAME_SMALL / 4];
    size_t n = 0, skip;
    insns[n++] = LOAD(BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct xdp_md, data));
    insns[n++] = LOAD(BPF_W, BPF_REG_3, BPF_REG_1, offsetof(struct xdp_md, data_end));
    insns[n++] = MOV_REG(BPF_REG_4, BPF_REG_2);
    insns[n++] = ADD_IMM(BPF_REG_4, FRAME_SMALL);
    insns[n++] = MOV_IMM(BPF_REG_0, XDP_ABORTED);
    skip = n++;
    for (unsigned at = 0; at < FRAME_SMALL; at += 4) {
        int32_t word;
        memcpy(&word, frame + at, 4);
        insns[n++] = STORE_IMM(BPF_W, BPF_REG_2, (int16_t)at, word);
    }
    const struct bpf_insn count_and_send[] = {
        MAP_VALUE(BPF_REG_1, counter),
        MOV_IMM(BPF_REG_2, 1),
        ATOMIC_ADD64(BPF_REG_1, BPF_REG_2),
        MOV_IMM(BPF_REG_1, (int)ifindex),
        MOV_IMM(BPF_REG_2, 0),
        CALL(BPF_FUNC_redirect),
    };
    memcpy(insns + n, count_and_send, sizeof(count_and_send));
    n += ARRAY_LEN(count_and_send);
    insns[skip] = JUMP_IF_GT(BPF_REG_4, BPF_REG_3, (int16_t)(n - skip - 1));
    insns[n++] = EXIT();
    return program_load(BPF_PROG_TYPE_XDP, 0, insns, n);
}

/* Puts `count` frames on the interface by a live-frame test run; false when a signal ended it early. */
static bool generator_run(int program, const uint8_t *frame, uint32_t count)
{
    union bpf_attr attr = {.test = {.prog_fd = (uint32_t)program,
                                    .data_in = (uintptr_t)frame,
                                    .data_size_in = FRAME_SMALL,
                                    .repeat = count,
                                    .flags = BPF_F_TEST_XDP_LIVE_FRAMES,
                                    .batch_size = BATCH}};
    if (bpf(BPF_PROG_TEST_RUN, &attr) == 0)
        return true;
    if (errno != EINTR)
        fail("the kernel refused a live-frame test run (Linux 5.18 or later?): %s", strerror(errno));
    return false;
}

/*
 * One single test run for the whole time, in a process of its own that is ended when the window is over. Each run begins
 * and ends with a rewrite of the kernel's XDP dispatcher and a wait for a grace period: a source of many short runs
 * pauses three quarters of the time and measures the length of its peer's queues.
 */
static void send_xdp(const char *interface, const struct ends *ends, struct tally *tally)
{
    uint8_t frame[FRAME_SMALL];
    frame_write(frame, FRAME_SMALL, ends, UDP_PORT, 0);
    int counter = map_create(BPF_MAP_TYPE_ARRAY, 8, 1);
    int program = generator_load(interface_index(interface), counter, frame);
    pid_t child = fork();
    if (child < 0)
        fail("cannot start a process: %s", strerror(errno));
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (generator_run(program, frame, UINT32_MAX))
            ;
        _exit(1);
    }
    if (clock_getcpuclockid(child, &tally->cpu_clock))
        fail("cannot read the CPU time of a process");
    uint64_t before, now = 0;
    do {
        sleep_s(0.005);
        before = now;
        now = map_read64(counter, 0);
        if (waitpid(child, NULL, WNOHANG) == child)
            exit(1); /* it has said why */
    } while (tally_add(tally, now - before));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

/* A packet socket that sends on one interface, past the queueing discipline, and receives nothing. */
static int packet_socket(const char *interface)
{
    int fd = socket(AF_PACKET, SOCK_RAW, 0), one = 1;
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)interface_index(interface)};
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)))
        fail("cannot open a packet socket on %s: %s", interface, strerror(errno));
    if (setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)))
        fail("cannot bypass the queueing discipline: %s", strerror(errno));
    return fd;
}

/* A ring of slots that all hold the same frame; a slot is given to the kernel again as soon as the kernel is done. */
static void send_ring(const char *interface, const struct ends *ends, struct tally *tally)
{
    enum { SLOT = 2048, SLOTS = 1024, OFFSET = TPACKET2_HDRLEN - sizeof(struct sockaddr_ll) };
    int fd = packet_socket(interface), version = TPACKET_V2;
    struct tpacket_req request = {
        .tp_block_size = 4096, .tp_block_nr = SLOT * SLOTS / 4096, .tp_frame_size = SLOT, .tp_frame_nr = SLOTS};
    if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) ||
        setsockopt(fd, SOL_PACKET, PACKET_TX_RING, &request, sizeof(request)))
        fail("cannot set up a transmit ring: %s", strerror(errno));
    uint8_t *ring = mmap(NULL, SLOT * SLOTS, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ring == MAP_FAILED)
        fail("cannot map the transmit ring: %s", strerror(errno));
    for (unsigned i = 0; i < SLOTS; i++)
        frame_write(ring + i * SLOT + OFFSET, FRAME_SMALL, ends, UDP_PORT, 0);

    unsigned slot = 0;
    do {
        for (unsigned i = 0; i < BATCH; i++) {
            struct tpacket2_hdr *header = (void *)(ring + (slot + i) * SLOT);
            while (__atomic_load_n(&header->tp_status, __ATOMIC_ACQUIRE) != TP_STATUS_AVAILABLE) {
                struct pollfd wait = {.fd = fd, .events = POLLOUT};
                poll(&wait, 1, 1);
            }
            header->tp_len = FRAME_SMALL;
            __atomic_store_n(&header->tp_status, TP_STATUS_SEND_REQUEST, __ATOMIC_RELEASE);
        }
        if (send(fd, NULL, 0, MSG_DONTWAIT) < 0 && errno != EAGAIN && errno != ENOBUFS)
            fail("cannot send on %s: %s", interface, strerror(errno));
        slot = (slot + BATCH) % SLOTS;
    } while (tally_add(tally, BATCH));
}

/* The same message `BATCH` times per system call. */
static void send_mmsg(int fd, void *bytes, size_t length, struct tally *tally)
{
    struct iovec iov = {.iov_base = bytes, .iov_len = length};
    struct mmsghdr messages[BATCH];
    memset(messages, 0, sizeof(messages));
    for (unsigned i = 0; i < BATCH; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1};
    int sent;
    do {
        sent = sendmmsg(fd, messages, BATCH, 0);
        if (sent < 0 && errno != ENOBUFS && errno != EAGAIN)
            fail("cannot send: %s", strerror(errno));
    } while (tally_add(tally, sent > 0 ? (unsigned)sent : 0));
}

static void send_packet_mmsg(const char *interface, const struct ends *ends, struct tally *tally)
{
    uint8_t frame[FRAME_SMALL];
    frame_write(frame, FRAME_SMALL, ends, UDP_PORT, 0);
    send_mmsg(packet_socket(interface), frame, sizeof(frame), tally);
}

static void send_udp(const struct ends *ends, struct tally *tally)
{
    uint8_t payload[FRAME_SMALL - HEADERS] = {0};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(UDP_PORT)};
    memcpy(&to.sin_addr, ends->target_ip, 4);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)))
        fail("cannot open a UDP socket: %s", strerror(errno));
    send_mmsg(fd, payload, sizeof(payload), tally);
}

/* Small groups with a pause: this burst asks whether frames arrive whole, not how many a queue can hold. */
static void send_check(const char *interface, const struct ends *ends)
{
    uint8_t frame[FRAME_MAX];
    int fd = packet_socket(interface);
    for (uint32_t n = 0; n < CHECK_SKBS; n++) {
        unsigned length = check_length(n);
        frame_write(frame, length, ends, CHECK_PORT, n);
        if (send(fd, frame, length, 0) != (ssize_t)length)
            fail("cannot send frame %u: %s", n, strerror(errno));
        if (n % 16 == 15)
            sleep_s(0.002);
    }
    frame_write(frame, FRAME_SMALL, ends, CHECK_PORT, CHECK_XDP_SEED);
    int program = generator_load(interface_index(interface), map_create(BPF_MAP_TYPE_ARRAY, 8, 1), frame);
    generator_run(program, frame, CHECK_XDPS);
    printf("sent=%u\n", CHECK_SKBS + CHECK_XDPS);
}

int main(int argc, char **argv)
{
    bool check = argc == 7 && !strcmp(argv[1], "check");
    if (argc != 9 && !check)
        fail("usage: source xdp|ring|mmsg|udp IFACE SOURCE_MAC TARGET_MAC SOURCE_IP TARGET_IP WARMUP SECONDS\n"
             "       source check IFACE SOURCE_MAC TARGET_MAC SOURCE_IP TARGET_IP");
    const char *kind = argv[1], *interface = argv[2];
    struct ends ends = ends_argument(argv + 3);
    if (check) {
        send_check(interface, &ends);
        return 0;
    }
    struct tally tally = {.cpu_clock = CLOCK_PROCESS_CPUTIME_ID,
                          .warmup = number_argument(argv[7], 0, 60),
                          .length = number_argument(argv[8], 0.1, 3600)};
    if (!strcmp(kind, "xdp"))
        send_xdp(interface, &ends, &tally);
    else if (!strcmp(kind, "ring"))
        send_ring(interface, &ends, &tally);
    else if (!strcmp(kind, "mmsg"))
        send_packet_mmsg(interface, &ends, &tally);
    else if (!strcmp(kind, "udp"))
        send_udp(&ends, &tally);
    else
        fail("\"%s\" is not a kind of source", kind);
    printf("offered=%llu seconds=%.6f busy=%.6f\n", (unsigned long long)tally.counted, tally.counted_s, tally.busy_s);
    return 0;
}
