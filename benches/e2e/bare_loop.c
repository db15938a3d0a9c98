/*
 * The bare AF_XDP loop: what a forwarder between two veths costs when it does nothing but forward.
 *
 *   bare_loop FIRST SECOND CPU poll|spin
 *
 * An XDP program in native mode gives every frame of either interface to its socket; the loop, pinned to CPU, moves each
 * descriptor from one socket's receive ring to the other's transmit ring without looking at the frame. Both sockets
 * share one UMEM, so no byte is copied in this process. `poll` sleeps when there is nothing to do, `spin` never does.
 * Prints `ready`, and on SIGTERM how many frames went each way.
 *
 * Frames are accounted by direction: those filled for FIRST are transmitted by SECOND, come back in SECOND's completion
 * ring and go to FIRST's fill ring, and the other way round. So neither direction can starve the other, and no ring can
 * overflow: each holds as many entries as its direction has frames.
 */
#define _GNU_SOURCE
#include "kernel.h"
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define CHUNK 2048 /* a 1500-byte packet and its headroom; there is no multi-buffer here */
#define FRAMES 4096 /* of each direction */
#define BATCH 64
/* include/uapi/linux/if_xdp.h of Linux 6.17: frames that one system call may transmit (32 otherwise). */
#define XDP_MAX_TX_SKB_BUDGET 9

/* One ring, seen from user space. The cursors are free-running. */
struct ring {
    uint32_t *producer, *consumer;
    void *entries;
};

struct port {
    const char *name;
    int fd;
    struct ring fill, completion, rx, tx;
    uint64_t moved; /* frames received here and handed to the other port */
};

static volatile sig_atomic_t stop;

static void on_signal(int signal)
{
    (void)signal;
    stop = 1;
}

static struct ring ring_map(int fd, off_t page, const struct xdp_ring_offset *offset, size_t entry_size)
{
    uint8_t *base = mmap(NULL, offset->desc + FRAMES * entry_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                         fd, page);
    if (base == MAP_FAILED)
        fail("cannot map a ring: %s", strerror(errno));
    return (struct ring){(void *)(base + offset->producer), (void *)(base + offset->consumer), base + offset->desc};
}

static void option_set(int fd, int option, const void *value, socklen_t length)
{
    if (setsockopt(fd, SOL_XDP, option, value, length))
        fail("the kernel refused AF_XDP socket option %d: %s", option, strerror(errno));
}

/* Opens the port's socket. The first port registers the UMEM, the second names the first. */
static void port_open(struct port *port, const struct port *first, void *memory)
{
    int size = FRAMES, budget = BATCH;
    unsigned index = interface_index(port->name);
    port->fd = socket(AF_XDP, SOCK_RAW, 0);
    if (port->fd < 0)
        fail("cannot open an AF_XDP socket: %s", strerror(errno));
    if (first == port) {
        struct xdp_umem_reg umem = {.addr = (uintptr_t)memory, .len = 2 * FRAMES * CHUNK, .chunk_size = CHUNK};
        option_set(port->fd, XDP_UMEM_REG, &umem, sizeof(umem));
    }
    option_set(port->fd, XDP_UMEM_FILL_RING, &size, sizeof(size));
    option_set(port->fd, XDP_UMEM_COMPLETION_RING, &size, sizeof(size));
    option_set(port->fd, XDP_RX_RING, &size, sizeof(size));
    option_set(port->fd, XDP_TX_RING, &size, sizeof(size));
    setsockopt(port->fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof(budget)); /* older kernels: 32 */
    struct xdp_mmap_offsets offsets;
    socklen_t length = sizeof(offsets);
    if (getsockopt(port->fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length))
        fail("cannot ask for the rings' layout: %s", strerror(errno));
    port->fill = ring_map(port->fd, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, sizeof(uint64_t));
    port->completion = ring_map(port->fd, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, sizeof(uint64_t));
    port->rx = ring_map(port->fd, XDP_PGOFF_RX_RING, &offsets.rx, sizeof(struct xdp_desc));
    port->tx = ring_map(port->fd, XDP_PGOFF_TX_RING, &offsets.tx, sizeof(struct xdp_desc));

    struct sockaddr_xdp address = {.sxdp_family = AF_XDP, .sxdp_ifindex = index};
    address.sxdp_flags = first == port ? XDP_COPY | XDP_USE_NEED_WAKEUP : XDP_SHARED_UMEM;
    address.sxdp_shared_umem_fd = first == port ? 0 : (uint32_t)first->fd;
    if (bind(port->fd, (struct sockaddr *)&address, sizeof(address)))
        fail("cannot bind an AF_XDP socket to %s: %s", port->name, strerror(errno));
}

/* Gives every frame of the interface to the socket, in native mode; it passes when the socket is gone. */
static void port_attach(const struct port *port)
{
    int map = map_create(BPF_MAP_TYPE_XSKMAP, 4, 1);
    map_update(map, 0, &port->fd);
    const struct bpf_insn insns[] = {
        LOAD(BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct xdp_md, rx_queue_index)),
        MAP_FD(BPF_REG_1, map),
        MOV_IMM(BPF_REG_3, XDP_PASS),
        CALL(BPF_FUNC_redirect_map),
        EXIT(),
    };
    int program = program_load(BPF_PROG_TYPE_XDP, 0, insns, ARRAY_LEN(insns));
    link_create(program, interface_index(port->name), BPF_XDP, XDP_FLAGS_DRV_MODE, port->name);
}

static void fill_first(struct port *port, uint64_t from)
{
    for (uint32_t i = 0; i < FRAMES; i++)
        ((uint64_t *)port->fill.entries)[i] = from + (uint64_t)i * CHUNK;
    __atomic_store_n(port->fill.producer, FRAMES, __ATOMIC_RELEASE);
}

/* Frames whose transmission on `out` is done may be received on `in` again. */
static void recycle(struct port *in, struct port *out)
{
    uint32_t from = *out->completion.consumer, to = *in->fill.producer;
    uint32_t count = __atomic_load_n(out->completion.producer, __ATOMIC_ACQUIRE) - from;
    for (uint32_t i = 0; i < count; i++)
        ((uint64_t *)in->fill.entries)[(to + i) % FRAMES] =
            ((uint64_t *)out->completion.entries)[(from + i) % FRAMES];
    __atomic_store_n(out->completion.consumer, from + count, __ATOMIC_RELEASE);
    __atomic_store_n(in->fill.producer, to + count, __ATOMIC_RELEASE);
}

/* Has the kernel transmit until the ring is empty: one call stops when its budget is spent. */
static void drain(struct port *out)
{
    while (__atomic_load_n(out->tx.consumer, __ATOMIC_ACQUIRE) != *out->tx.producer) {
        if (sendto(out->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN && errno != EBUSY &&
            errno != ENOBUFS && errno != EINTR)
            fail("cannot transmit on %s: %s", out->name, strerror(errno));
        if (stop)
            return;
    }
}

/* Moves up to a batch of frames from `in` to `out`; returns how many. */
static uint32_t move(struct port *in, struct port *out)
{
    recycle(in, out);
    uint32_t from = *in->rx.consumer, to = *out->tx.producer;
    uint32_t count = __atomic_load_n(in->rx.producer, __ATOMIC_ACQUIRE) - from;
    if (count == 0)
        return 0;
    if (count > BATCH)
        count = BATCH;
    struct xdp_desc *received = in->rx.entries, *sent = out->tx.entries;
    for (uint32_t i = 0; i < count; i++)
        sent[(to + i) % FRAMES] = received[(from + i) % FRAMES];
    __atomic_store_n(in->rx.consumer, from + count, __ATOMIC_RELEASE);
    __atomic_store_n(out->tx.producer, to + count, __ATOMIC_RELEASE);
    drain(out);
    in->moved += count;
    return count;
}

int main(int argc, char **argv)
{
    if (argc != 5 || (strcmp(argv[4], "poll") && strcmp(argv[4], "spin")))
        fail("usage: bare_loop FIRST SECOND CPU poll|spin");
    struct port first = {.name = argv[1]}, second = {.name = argv[2]};
    bool spin = !strcmp(argv[4], "spin");
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET((size_t)number_argument(argv[3], 0, CPU_SETSIZE - 1), &cpus);
    if (sched_setaffinity(0, sizeof(cpus), &cpus))
        fail("cannot run on CPU %s: %s", argv[3], strerror(errno));

    void *memory = mmap(NULL, 2 * FRAMES * CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
                        -1, 0);
    if (memory == MAP_FAILED)
        fail("cannot allocate the UMEM: %s", strerror(errno));
    port_open(&first, &first, memory);
    port_open(&second, &first, memory);
    fill_first(&first, 0);
    fill_first(&second, (uint64_t)FRAMES * CHUNK);
    port_attach(&first);
    port_attach(&second);

    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    puts("ready");
    fflush(stdout);
    struct pollfd wait[] = {{.fd = first.fd, .events = POLLIN}, {.fd = second.fd, .events = POLLIN}};
    while (!stop) {
        uint32_t moved = move(&first, &second) + move(&second, &first);
        if (moved == 0 && !spin)
            poll(wait, 2, 100);
    }
    printf("moved=%llu,%llu\n", (unsigned long long)first.moved, (unsigned long long)second.moved);
    return 0;
}
