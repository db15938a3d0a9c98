/*
 * The load of the comparison: sends into one pod, counts what comes out in another, and searches for the rates that get through.
 *
 *   load FROM TO SOURCE_MAC TARGET_MAC SOURCE_IP TARGET_IP KEY=VALUE…
 *
 * FROM and TO are NETNS/INTERFACE. The sink counts and drops measured frames at tc ingress of TO, so that every forwarder pays
 * for the skb that a real pod would get. Keys:
 *
 *   mode=rate       (default) as many as one core makes, for `seconds` after `warmup`
 *   mode=search     the highest rates without loss (NDR) and with less than 0.5 % (PDR), by bisection, `seconds` a trial
 *   mode=latency    one-way times at `pps` frames a second for `seconds`: 0.5 µs is the resolution
 *   source=xdp|skb  xdp frames from a live-frame test run, or skbs from a packet socket with sendmmsg (default: skb)
 *   size=N|imix     bytes of a frame with FCS, 64 to 1518, or 64, 570 and 1518 at 7:4:1 (default: 64)
 *   flows=N         different UDP ports, 1 to 100,000 (default: 1)
 *   targets=N stride=N   destination addresses, a power of two, so far apart (default: 1)
 *   varied=1        frames are made as if flows and targets changed, for comparisons with runs in which they do
 *   warmup=S seconds=S pps=N pid=N       pid: the forwarder, whose CPU time is counted
 *
 * Prints one line of NAME=VALUE. `busy` is the CPU time of the forwarder's threads, `machine` that of all CPUs, in seconds;
 * `source` that of the source.
 */
#define _GNU_SOURCE
#include "generator.h"
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <sched.h>
#include <sys/socket.h>
#include <arpa/inet.h>

#define BATCH 60 /* frames per system call: whole patterns of sizes */
#define BUCKETS 32768
#define BUCKET_SHIFT 9 /* 512 ns */
#define PATIENCE_S 3.0 /* how long the first frame may take */
#define DRAIN_S 0.01   /* what is under way when a trial ends arrives within this time */
#define TRIALS 9
#define PDR_LOSS 0.005

enum source { SOURCE_SKB, SOURCE_XDP };
/* Words of the sink's array. */
enum { SINK_FRAMES, SINK_BYTES, SINK_WORDS };

struct options {
    const char *mode;
    enum source source;
    struct mix mix;
    double warmup, seconds, pps;
    int pid;
};

/* One source at work: its rate can be changed while it runs. */
struct sender {
    const struct options *options;
    const struct ends *ends;
    struct generator_maps maps; /* xdp: what is shared with the program */
    pid_t child;                /* xdp: the test run */
    int fd;                     /* skb: the packet socket */
    uint64_t offered;
    clockid_t cpu_clock;
};

struct totals {
    uint64_t offered, frames, bytes;
    double at, busy, machine, source;
};

static int sink_map, sink_times;

/* ------------------------------------------------------------------------------------------------- namespaces */

/* Enters the namespace of NETNS/INTERFACE; returns the interface's name. */
static const char *enter(const char *place)
{
    char path[256];
    const char *slash = strchr(place, '/');
    if (!slash)
        fail("\"%s\" is not NETNS/INTERFACE", place);
    snprintf(path, sizeof(path), "/run/netns/%.*s", (int)(slash - place), place);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET))
        fail("cannot enter the namespace %s: %s", path, strerror(errno));
    close(fd);
    return slash + 1;
}

/* ------------------------------------------------------------------------------------------------------- the sink */

/* Counts and drops UDP to the measured ports; everything else (ARP, TCP, ICMP) goes on into the pod. */
static void sink_attach(const char *interface, bool times)
{
    static struct code program;
    struct code *code = &program;
    size_t out[5];
    sink_map = map_create(BPF_MAP_TYPE_ARRAY, SINK_WORDS * 8, 1);
    sink_times = map_create(BPF_MAP_TYPE_ARRAY, BUCKETS * 8, 1);
    EMIT(MOV_REG(BPF_REG_6, BPF_REG_1), LOAD(BPF_W, BPF_REG_7, BPF_REG_1, offsetof(struct __sk_buff, data)),
         LOAD(BPF_W, BPF_REG_3, BPF_REG_1, offsetof(struct __sk_buff, data_end)), MOV_REG(BPF_REG_4, BPF_REG_7),
         ADD_IMM(BPF_REG_4, TIME_AT + 16));
    out[0] = emit(code, JUMP_IF_GT(BPF_REG_4, BPF_REG_3, 0));
    EMIT(LOAD(BPF_H, BPF_REG_5, BPF_REG_7, 12));
    out[1] = emit(code, JUMP_IF_NE_IMM(BPF_REG_5, htons(0x0800), 0));
    EMIT(LOAD(BPF_B, BPF_REG_5, BPF_REG_7, 23));
    out[2] = emit(code, JUMP_IF_NE_IMM(BPF_REG_5, 17, 0));
    EMIT(LOAD(BPF_B, BPF_REG_5, BPF_REG_7, 36));
    out[3] = emit(code, JUMP_IF_NE_IMM(BPF_REG_5, FLOW_PORT >> 8, 0));
    EMIT(MAP_VALUE(BPF_REG_1, sink_map), MOV_IMM(BPF_REG_2, 1), ATOMIC_ADD64(BPF_REG_1, BPF_REG_2),
         LOAD(BPF_W, BPF_REG_2, BPF_REG_6, offsetof(struct __sk_buff, len)), ADD_IMM(BPF_REG_1, SINK_BYTES * 8),
         ATOMIC_ADD64(BPF_REG_1, BPF_REG_2));
    if (times)
        EMIT(CALL(BPF_FUNC_ktime_get_ns), LOAD(BPF_DW, BPF_REG_2, BPF_REG_7, TIME_AT),
             ALU_REG(BPF_SUB, BPF_REG_0, BPF_REG_2), ALU_IMM(BPF_RSH, BPF_REG_0, BUCKET_SHIFT),
             JUMP_IF_LE_IMM(BPF_REG_0, BUCKETS - 1, 1), MOV_IMM(BPF_REG_0, BUCKETS - 1),
             ALU_IMM(BPF_LSH, BPF_REG_0, 3), MAP_VALUE(BPF_REG_1, sink_times), ALU_REG(BPF_ADD, BPF_REG_1, BPF_REG_0),
             MOV_IMM(BPF_REG_2, 1), ATOMIC_ADD64(BPF_REG_1, BPF_REG_2));
    EMIT(MOV_IMM(BPF_REG_0, TCX_DROP), EXIT());
    for (int i = 0; i < 4; i++)
        land(code, out[i]);
    EMIT(MOV_IMM(BPF_REG_0, TCX_NEXT), EXIT());
    int loaded = program_load(BPF_PROG_TYPE_SCHED_CLS, ATTACH_TCX_INGRESS, code->insns, code->count);
    link_create(loaded, interface_index(interface), ATTACH_TCX_INGRESS, 0, interface);
}

/* ------------------------------------------------------------------------------------------------------ the source */

static uint64_t state_offered(const struct sender *sender)
{
    uint64_t words[GEN_WORDS];
    map_read(sender->maps.state, words);
    return words[GEN_OFFERED];
}

/*
 * xdp frames come from one single test run for the whole time, in a process of its own: each run begins and ends with a rewrite
 * of the kernel's XDP dispatcher and a wait for a grace period. Between trials it finds that nothing is due.
 */
static void sender_start_xdp(struct sender *sender, const char *interface)
{
    sender->maps = generator_maps();
    map_write64(sender->maps.interval, 0, PAUSED);
    int program = generator_load(interface_index(interface), sender->maps, &sender->options->mix, sender->ends);
    sender->child = fork();
    if (sender->child < 0)
        fail("cannot start a process: %s", strerror(errno));
    if (sender->child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (generator_run(program, &sender->options->mix, sender->ends, UINT32_MAX))
            ;
        _exit(1);
    }
    if (clock_getcpuclockid(sender->child, &sender->cpu_clock))
        fail("cannot read the CPU time of a process");
}

/* A packet socket that sends on one interface, past the queueing discipline, and receives nothing. */
static void sender_start_skb(struct sender *sender, const char *interface)
{
    int one = 1;
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)interface_index(interface)};
    sender->cpu_clock = CLOCK_PROCESS_CPUTIME_ID;
    sender->fd = socket(AF_PACKET, SOCK_RAW, 0);
    if (sender->fd < 0 || bind(sender->fd, (struct sockaddr *)&address, sizeof(address)))
        fail("cannot open a packet socket on %s: %s", interface, strerror(errno));
    if (setsockopt(sender->fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)))
        fail("cannot bypass the queueing discipline: %s", strerror(errno));
}

static unsigned size_of(const struct mix *mix, unsigned number)
{
    unsigned size = 0;
    while (size + 1 < mix->sizes && number % PATTERN >= mix->until[size])
        size++;
    return size;
}

/* Gives frame `number` its ports, its destination and its time. */
static void stamp(uint8_t *frame, const struct sender *sender, uint64_t number)
{
    const struct mix *mix = &sender->options->mix;
    if (mix_changes(mix)) {
        uint32_t flow = (uint32_t)(number % mix->flows);
        frame[37] = (uint8_t)flow;
        put16(frame + 34, SOURCE_PORT + (flow >> 8));
    }
    if (mix_changes(mix)) {
        uint32_t target = (uint32_t)(number * 40503 >> 4) & (mix->targets - 1);
        uint32_t address = htonl(address_of(sender->ends) + target * mix->stride);
        memcpy(frame + 30, &address, 4);
        put16(frame + 24, 0);
        put16(frame + 24, ~sum16(frame + 14, 20, 0) & 0xffff);
    }
    if (mix_changes(mix))
        put16(frame + BALANCE_AT, ~sum16(frame + 30, 8, 0) & 0xffff);
    if (mix->times) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        uint64_t now = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec, complement = ~now;
        memcpy(frame + TIME_AT, &now, 8);
        memcpy(frame + TIME_AT + 8, &complement, 8);
    }
}

/* Sends skbs for `seconds`, `pps` a second or, with 0, as many as it can. What the interface refuses is offered too. */
static void send_skbs(struct sender *sender, double pps, double seconds)
{
    static uint8_t frames[BATCH][FRAME_MAX];
    static struct iovec iovs[BATCH];
    static struct mmsghdr messages[BATCH];
    const struct mix *mix = &sender->options->mix;
    for (unsigned i = 0; i < BATCH; i++) {
        unsigned size = size_of(mix, i);
        mix_frame(frames[i], mix, size, sender->ends);
        iovs[i] = (struct iovec){.iov_base = frames[i], .iov_len = mix->length[size]};
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &iovs[i], .msg_iovlen = 1}};
    }
    bool changes = mix_changes(mix) || mix->times;
    double start = now_s(), now = start, forgiven = 0;
    uint64_t done = 0;
    for (unsigned at = 0; now - start < seconds; now = now_s()) {
        double due = pps > 0 ? (now - start - forgiven) * pps - (double)done : BATCH;
        if (due < 1)
            continue;
        /* As with xdp frames, what was missed for long is not made up for. */
        if (pps > 0 && due > pps * 1e-4 + BATCH) {
            forgiven += (due - BATCH) / pps;
            due = BATCH;
        }
        unsigned want = due < BATCH - at ? (unsigned)due : BATCH - at;
        for (unsigned i = at; changes && i < at + want; i++)
            stamp(frames[i], sender, sender->offered + i - at);
        int sent = sendmmsg(sender->fd, messages + at, want, 0);
        if (sent < 0 && errno != ENOBUFS && errno != EAGAIN)
            fail("cannot send: %s", strerror(errno));
        unsigned offered = sent < 0 ? 1 : (unsigned)sent < want ? (unsigned)sent + 1 : want;
        sender->offered += offered;
        done += offered;
        at = (at + offered) % BATCH;
    }
}

static void sender_start(struct sender *sender, const char *interface)
{
    if (sender->options->source == SOURCE_XDP)
        sender_start_xdp(sender, interface);
    else
        sender_start_skb(sender, interface);
}

/* Sends for `seconds` at `pps`, or as fast as it can with 0. */
static void sender_run(struct sender *sender, double pps, double seconds)
{
    if (sender->options->source == SOURCE_SKB) {
        send_skbs(sender, pps, seconds);
        return;
    }
    map_write64(sender->maps.interval, 0, pps > 0 ? (uint64_t)(1e9 / pps) : 0);
    sleep_s(seconds);
    if (waitpid(sender->child, NULL, WNOHANG) == sender->child)
        exit(1); /* it has said why */
    sender->offered = state_offered(sender);
}

/* Nothing more is sent; returns how many were, once it is certain. */
static void sender_pause(struct sender *sender)
{
    if (sender->options->source == SOURCE_XDP) {
        uint64_t before;
        map_write64(sender->maps.interval, 0, PAUSED);
        do {
            before = state_offered(sender);
            sleep_s(0.001);
            sender->offered = state_offered(sender);
        } while (sender->offered != before);
    }
}

static void sender_end(struct sender *sender)
{
    if (sender->child) {
        kill(sender->child, SIGKILL);
        waitpid(sender->child, NULL, 0);
    }
}

/* --------------------------------------------------------------------------------------------------- measurements */

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

/* Seconds that all CPUs were not idle. */
static double machine_time_s(void)
{
    unsigned long long user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0;
    FILE *stat = fopen("/proc/stat", "r");
    if (!stat || fscanf(stat, "cpu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle, &iowait, &irq, &softirq) != 7)
        fail("cannot read /proc/stat");
    fclose(stat);
    return (double)(user + nice + system + irq + softirq) / (double)sysconf(_SC_CLK_TCK);
}

static struct totals totals_now(struct sender *sender)
{
    uint64_t words[SINK_WORDS];
    if (sender->options->source == SOURCE_XDP)
        sender->offered = state_offered(sender);
    map_read(sink_map, words);
    return (struct totals){.offered = sender->offered, .frames = words[SINK_FRAMES], .bytes = words[SINK_BYTES],
                           .at = now_s(), .busy = cpu_time_s(sender->options->pid), .machine = machine_time_s(),
                           .source = clock_s(sender->cpu_clock)};
}

static struct totals totals_since(struct totals before, struct totals now)
{
    return (struct totals){.offered = now.offered - before.offered, .frames = now.frames - before.frames,
                           .bytes = now.bytes - before.bytes, .at = now.at - before.at, .busy = now.busy - before.busy,
                           .machine = now.machine - before.machine, .source = now.source - before.source};
}

/* Runs at `pps`, lets it settle, and counts while it goes on. */
static struct totals measure_rate(struct sender *sender, double pps, double warmup, double seconds)
{
    sender_run(sender, pps, warmup);
    struct totals before = totals_now(sender);
    if (before.frames == 0)
        fail("no frame came out within %g s", warmup);
    sender_run(sender, pps, seconds);
    return totals_since(before, totals_now(sender));
}

/* A trial has a beginning and an end, so that every frame of it is accounted for. */
static struct totals measure_trial(struct sender *sender, double pps, double seconds)
{
    struct totals before = totals_now(sender);
    sender_run(sender, pps, seconds);
    sender_pause(sender);
    double length = now_s() - before.at;
    sleep_s(DRAIN_S);
    struct totals trial = totals_since(before, totals_now(sender));
    trial.at = length;
    return trial;
}

static double loss_of(struct totals trial)
{
    return trial.offered ? 1 - (double)trial.frames / (double)trial.offered : 1;
}

/*
 * The highest rate with at most `loss`, between one that is known to be good and one that is not. A rate that loses is tried
 * once more, since other things run on every machine; and one that the source cannot make is too high.
 */
static double bisect(struct sender *sender, double high, double loss)
{
    double low = 0, best = 0, length = sender->options->seconds;
    for (int trial = 0; trial < TRIALS; trial++) {
        double rate = (low + high) / 2;
        bool good = false;
        struct totals seen = {0};
        for (int attempt = 0; attempt < 2 && !good; attempt++) {
            seen = measure_trial(sender, rate, length);
            good = loss_of(seen) <= loss && (double)seen.offered / seen.at > rate * 0.97;
        }
        if (good) {
            low = rate;
            best = (double)seen.frames / seen.at;
        } else
            high = rate;
    }
    return best;
}

static void print_rate(const char *prefix, struct totals seen)
{
    printf("%sdelivered=%llu %soffered=%llu %sbytes=%llu %sseconds=%.6f %sbusy=%.6f %smachine=%.6f %ssource=%.6f ", prefix,
           (unsigned long long)seen.frames, prefix, (unsigned long long)seen.offered, prefix,
           (unsigned long long)seen.bytes, prefix, seen.at, prefix, seen.busy, prefix, seen.machine, prefix, seen.source);
}

static void search(struct sender *sender)
{
    const struct options *options = sender->options;
    struct totals full = measure_rate(sender, 0, options->warmup, options->seconds);
    sender_pause(sender);
    sleep_s(0.05);
    /* Above what gets through at full load there is nothing, or not much. */
    double high = (double)full.frames / full.at * 1.3;
    double pdr = bisect(sender, high, PDR_LOSS), ndr = bisect(sender, pdr * 1.02, 0);
    print_rate("full_", full);
    printf("ndr=%.0f pdr=%.0f\n", ndr, pdr > ndr ? pdr : ndr);
}

/* The time, in µs, that a share of the frames did not exceed. */
static double percentile(const uint64_t *buckets, uint64_t total, double share)
{
    uint64_t seen = 0;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        seen += buckets[bucket];
        if ((double)seen >= (double)total * share && seen)
            return (bucket + 0.5) * (1 << BUCKET_SHIFT) / 1000.0;
    }
    return 0;
}

static void latency(struct sender *sender)
{
    static uint64_t before[BUCKETS], buckets[BUCKETS];
    const struct options *options = sender->options;
    sender_run(sender, options->pps, options->warmup);
    sender_pause(sender);
    sleep_s(DRAIN_S);
    map_read(sink_times, before);
    struct totals seen = measure_trial(sender, options->pps, options->seconds);
    map_read(sink_times, buckets);
    uint64_t total = 0;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++)
        total += buckets[bucket] -= before[bucket];
    if (!total)
        fail("no frame came out");
    print_rate("", seen);
    printf("p50=%.2f p90=%.2f p99=%.2f p999=%.2f\n", percentile(buckets, total, 0.5), percentile(buckets, total, 0.9),
           percentile(buckets, total, 0.99), percentile(buckets, total, 0.999));
}

/* --------------------------------------------------------------------------------------------------- command line */

static struct mix mix_argument(const char *size)
{
    struct mix mix = {.sizes = 1, .flows = 1, .targets = 1};
    if (!strcmp(size, "imix"))
        return (struct mix){.sizes = 3, .length = {60, 566, 1514}, .until = {7, 11, 12}, .flows = 1, .targets = 1};
    mix.length[0] = (unsigned)number_argument(size, 64, FRAME_MAX + 4) - 4;
    mix.until[0] = PATTERN;
    return mix;
}

static void option(struct options *options, const char *key, const char *value)
{
    if (!strcmp(key, "mode"))
        options->mode = value;
    else if (!strcmp(key, "source"))
        options->source = !strcmp(value, "xdp") ? SOURCE_XDP : SOURCE_SKB;
    else if (!strcmp(key, "flows"))
        options->mix.flows = (uint32_t)number_argument(value, 1, 100000);
    else if (!strcmp(key, "targets"))
        options->mix.targets = (uint32_t)number_argument(value, 1, 1 << 20);
    else if (!strcmp(key, "stride"))
        options->mix.stride = (uint32_t)number_argument(value, 1, 1 << 20);
    else if (!strcmp(key, "varied"))
        options->mix.varied = number_argument(value, 0, 1) > 0;
    else if (!strcmp(key, "warmup"))
        options->warmup = number_argument(value, 0.01, 60);
    else if (!strcmp(key, "seconds"))
        options->seconds = number_argument(value, 0.01, 3600);
    else if (!strcmp(key, "pps"))
        options->pps = number_argument(value, 1, 1e9);
    else if (!strcmp(key, "pid"))
        options->pid = (int)number_argument(value, 0, INT_MAX);
    else
        fail("there is no option \"%s\"", key);
}

static struct options options_argument(int count, char **arguments)
{
    struct options options = {.mode = "rate", .mix = mix_argument("64"), .warmup = 0.5, .seconds = 1};
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < count; i++) {
            char key[32], *sign = strchr(arguments[i], '=');
            if (!sign || sign - arguments[i] >= (ptrdiff_t)sizeof(key))
                fail("\"%s\" is not KEY=VALUE", arguments[i]);
            snprintf(key, sizeof(key), "%.*s", (int)(sign - arguments[i]), arguments[i]);
            /* The size first, since it lays the mix out. */
            if (strcmp(key, "size") == 0 && pass == 0)
                options.mix = mix_argument(sign + 1);
            else if (strcmp(key, "size") != 0 && pass == 1)
                option(&options, key, sign + 1);
        }
    if (options.mix.targets & (options.mix.targets - 1))
        fail("targets must be a power of two");
    options.mix.times = !strcmp(options.mode, "latency");
    return options;
}

int main(int argc, char **argv)
{
    if (argc < 7)
        fail("usage: load FROM TO SOURCE_MAC TARGET_MAC SOURCE_IP TARGET_IP KEY=VALUE…; see the head of load.c");
    struct ends ends = ends_argument(argv + 3);
    struct options options = options_argument(argc - 7, argv + 7);
    struct sender sender = {.options = &options, .ends = &ends};
    sink_attach(enter(argv[2]), options.mix.times);
    sender_start(&sender, enter(argv[1]));
    if (!strcmp(options.mode, "rate")) {
        print_rate("", measure_rate(&sender, options.pps, options.warmup, options.seconds));
        putchar('\n');
    } else if (!strcmp(options.mode, "search"))
        search(&sender);
    else if (!strcmp(options.mode, "latency"))
        latency(&sender);
    else
        fail("\"%s\" is not a mode", options.mode);
    sender_end(&sender);
    return 0;
}
