/*
 * The sink of the comparison, run in the receiving pod's namespace:
 *
 *   sink count IFACE WARMUP SECONDS PID   counts and drops the measured frames at tc ingress of the pod's interface, so
 *                                         that every forwarder pays for the skb that a real pod would get. Prints
 *                                         `ready`, waits for the first frame, then WARMUP, then counts for SECONDS and
 *                                         prints `delivered=FRAMES seconds=S busy=S`. `busy` is the CPU time that the
 *                                         threads of process PID, the forwarder, took meanwhile (PID 0: prints 0)
 *   sink check IFACE ENDS                 expects the checked burst. Prints `ready`, then compares every frame byte for
 *                                         byte and prints `checked=FRAMES`, or says what was missing, altered or out of
 *                                         order
 */
#define _GNU_SOURCE
#include "frames.h"
#include "check.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <limits.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <poll.h>
#include <sys/socket.h>

#define PATIENCE_S 5.0 /* how long the first frame may take */

/* Counts and drops UDP to the measured port; everything else (ARP, TCP, ICMP) goes on into the pod. */
static int counter_attach(const char *interface)
{
    int map = map_create(BPF_MAP_TYPE_ARRAY, 8, 1);
    const struct bpf_insn insns[] = {
        LOAD(BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct __sk_buff, data)),
        LOAD(BPF_W, BPF_REG_3, BPF_REG_1, offsetof(struct __sk_buff, data_end)),
        MOV_REG(BPF_REG_4, BPF_REG_2),
        ADD_IMM(BPF_REG_4, HEADERS),
        JUMP_IF_GT(BPF_REG_4, BPF_REG_3, 12),
        LOAD(BPF_H, BPF_REG_5, BPF_REG_2, 12), /* EtherType */
        JUMP_IF_NE_IMM(BPF_REG_5, htons(0x0800), 10),
        LOAD(BPF_B, BPF_REG_5, BPF_REG_2, 23), /* protocol */
        JUMP_IF_NE_IMM(BPF_REG_5, 17, 8),
        LOAD(BPF_H, BPF_REG_5, BPF_REG_2, 36), /* UDP destination port */
        JUMP_IF_NE_IMM(BPF_REG_5, htons(UDP_PORT), 6),
        MAP_VALUE(BPF_REG_1, map),
        MOV_IMM(BPF_REG_2, 1),
        ATOMIC_ADD64(BPF_REG_1, BPF_REG_2),
        MOV_IMM(BPF_REG_0, TCX_DROP),
        EXIT(),
        MOV_IMM(BPF_REG_0, TCX_NEXT),
        EXIT(),
    };
    int program = program_load(BPF_PROG_TYPE_SCHED_CLS, ATTACH_TCX_INGRESS, insns, ARRAY_LEN(insns));
    link_create(program, interface_index(interface), ATTACH_TCX_INGRESS, 0, interface);
    return map;
}

static void ready(void)
{
    puts("ready");
    fflush(stdout);
}

/* Seconds of CPU time that all living threads of a process have taken (the first field of schedstat, in ns). */
static double cpu_time_s(int pid)
{
    char path[64];
    double sum = 0;
    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    DIR *tasks = pid ? opendir(path) : NULL;
    for (struct dirent *task; tasks && (task = readdir(tasks));) {
        unsigned long long ns;
        char file[sizeof(path) + sizeof(task->d_name) + sizeof("//schedstat")];
        snprintf(file, sizeof(file), "%s/%s/schedstat", path, task->d_name);
        FILE *stat = task->d_name[0] == '.' ? NULL : fopen(file, "r");
        if (stat && fscanf(stat, "%llu", &ns) == 1)
            sum += (double)ns / 1e9;
        if (stat)
            fclose(stat);
    }
    if (tasks)
        closedir(tasks);
    return sum;
}

static void count(const char *interface, double warmup, double seconds, int forwarder)
{
    int map = counter_attach(interface);
    ready();
    for (double start = now_s(); map_read64(map, 0) == 0; sleep_s(0.005))
        if (now_s() - start > PATIENCE_S)
            fail("no frame reached %s within %g s", interface, PATIENCE_S);
    sleep_s(warmup);
    double busy_before = cpu_time_s(forwarder), start = now_s();
    uint64_t before = map_read64(map, 0);
    sleep_s(seconds);
    uint64_t after = map_read64(map, 0);
    double length = now_s() - start, busy = cpu_time_s(forwarder) - busy_before;
    printf("delivered=%llu seconds=%.6f busy=%.6f\n", (unsigned long long)(after - before), length, busy);
}

/* Whether a received frame belongs to the checked burst at all; the pod hears other traffic too. */
static bool is_checked(const uint8_t *frame, ssize_t length)
{
    return length >= HEADERS && frame[12] == 8 && frame[13] == 0 && frame[23] == 17 &&
           frame[36] == CHECK_PORT >> 8 && frame[37] == (CHECK_PORT & 0xff);
}

/* The next frame of the checked burst; false when none comes for two seconds. */
static bool receive(int fd, uint8_t *frame, ssize_t *length)
{
    for (;;) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (poll(&wait, 1, 2000) == 0)
            return false;
        struct sockaddr_ll from;
        socklen_t from_length = sizeof(from);
        *length = recvfrom(fd, frame, FRAME_MAX + 64, 0, (struct sockaddr *)&from, &from_length);
        if (*length > 0 && from.sll_pkttype != PACKET_OUTGOING && is_checked(frame, *length))
            return true;
    }
}

static void check(const char *interface, const struct ends *ends)
{
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_IP)), buffer = 8 << 20;
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP), .sll_ifindex = (int)interface_index(interface)};
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)))
        fail("cannot open a packet socket on %s: %s", interface, strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof(buffer));
    ready();
    sleep_s(0.1);
    for (uint32_t n = 0; n < CHECK_SKBS + CHECK_XDPS; n++) {
        uint8_t got[FRAME_MAX + 64], want[FRAME_MAX];
        ssize_t length;
        if (!receive(fd, got, &length))
            fail("of %u frames only %u arrived", CHECK_SKBS + CHECK_XDPS, n);
        unsigned want_length = n < CHECK_SKBS ? check_length(n) : FRAME_SMALL;
        frame_write(want, want_length, ends, CHECK_PORT, n < CHECK_SKBS ? n : CHECK_XDP_SEED);
        if (length != (ssize_t)want_length)
            fail("frame %u arrived with %zd bytes instead of %u", n, length, want_length);
        for (unsigned i = 0; i < want_length; i++)
            if (got[i] != want[i])
                fail("frame %u arrived with byte %u altered (%02x, sent %02x) or out of order", n, i, got[i], want[i]);
    }
    printf("checked=%u\n", CHECK_SKBS + CHECK_XDPS);
}

int main(int argc, char **argv)
{
    if (argc == 6 && !strcmp(argv[1], "count"))
        count(argv[2], number_argument(argv[3], 0, 60), number_argument(argv[4], 0.1, 3600),
              (int)number_argument(argv[5], 0, INT_MAX));
    else if (argc == 7 && !strcmp(argv[1], "check")) {
        struct ends ends = ends_argument(argv + 3);
        check(argv[2], &ends);
    } else
        fail("usage: sink count IFACE WARMUP SECONDS PID | sink check IFACE SOURCE_MAC TARGET_MAC SOURCE_IP TARGET_IP");
    return 0;
}
