/*
 * The checked burst: does a forwarder deliver every frame, once, in order and byte for byte?
 *
 *   burst expect IFACE ENDS   prints `ready`, compares every frame that comes with what was sent, prints `checked=FRAMES`, or
 *                             says what was missing, altered or out of order
 *   burst send   IFACE ENDS   sends it: SKBS different skbs of all lengths, then XDPS xdp frames, all the same
 *
 * ENDS is SOURCE_MAC TARGET_MAC SOURCE_IP TARGET_IP.
 */
#define _GNU_SOURCE
#include "generator.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <poll.h>
#include <sys/socket.h>

#define SKBS 256
#define XDPS 64

static const struct mix xdp_mix = {.sizes = 1, .length = {FRAME_SMALL}, .until = {PATTERN}, .flows = 1, .targets = 1};

static int packet_socket(const char *interface, int protocol)
{
    int fd = socket(AF_PACKET, SOCK_RAW, protocol);
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = (uint16_t)protocol,
                                  .sll_ifindex = (int)interface_index(interface)};
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)))
        fail("cannot open a packet socket on %s: %s", interface, strerror(errno));
    return fd;
}

/* Small groups with a pause: this burst asks whether frames arrive whole, not how many a queue can hold. */
static void send_burst(const char *interface, const struct ends *ends)
{
    uint8_t frame[FRAME_MAX];
    int fd = packet_socket(interface, 0);
    for (uint32_t n = 0; n < SKBS; n++) {
        unsigned length = check_length(n);
        frame_write(frame, length, ends, CHECK_PORT, n);
        if (send(fd, frame, length, 0) != (ssize_t)length)
            fail("cannot send frame %u: %s", n, strerror(errno));
        if (n % 16 == 15)
            sleep_s(0.002);
    }
    struct generator_maps maps = generator_maps();
    generator_run(generator_load(interface_index(interface), maps, &xdp_mix, ends), &xdp_mix, ends, XDPS);
    printf("sent=%u\n", SKBS + XDPS);
}

/* What frame `n` of the burst looks like; returns its length. */
static unsigned wanted(uint8_t *frame, const struct ends *ends, uint32_t n)
{
    if (n >= SKBS) {
        mix_frame(frame, &xdp_mix, 0, ends);
        return FRAME_SMALL;
    }
    frame_write(frame, check_length(n), ends, CHECK_PORT, n);
    return check_length(n);
}

/* Whether a received frame belongs to the burst at all; the pod hears other traffic too. */
static bool is_ours(const uint8_t *frame, ssize_t length)
{
    unsigned port = (unsigned)frame[36] << 8 | frame[37];
    return length >= HEADERS && frame[12] == 8 && frame[13] == 0 && frame[23] == 17 &&
           (port == CHECK_PORT || port == FLOW_PORT);
}

/* The next frame of the burst; false when none comes for two seconds. */
static bool receive(int fd, uint8_t *frame, ssize_t *length)
{
    for (;;) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (poll(&wait, 1, 2000) == 0)
            return false;
        struct sockaddr_ll from;
        socklen_t from_length = sizeof(from);
        *length = recvfrom(fd, frame, FRAME_MAX + 64, 0, (struct sockaddr *)&from, &from_length);
        if (*length > 0 && from.sll_pkttype != PACKET_OUTGOING && is_ours(frame, *length))
            return true;
    }
}

static void expect_burst(const char *interface, const struct ends *ends)
{
    int fd = packet_socket(interface, htons(ETH_P_IP)), buffer = 8 << 20;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof(buffer));
    puts("ready");
    fflush(stdout);
    for (uint32_t n = 0; n < SKBS + XDPS; n++) {
        uint8_t got[FRAME_MAX + 64], want[FRAME_MAX];
        ssize_t length;
        if (!receive(fd, got, &length))
            fail("of %u frames only %u arrived", SKBS + XDPS, n);
        unsigned want_length = wanted(want, ends, n);
        if (length != (ssize_t)want_length)
            fail("frame %u arrived with %zd bytes instead of %u", n, length, want_length);
        for (unsigned i = 0; i < want_length; i++)
            if (got[i] != want[i])
                fail("frame %u arrived with byte %u altered (%02x, sent %02x) or out of order", n, i, got[i], want[i]);
    }
    printf("checked=%u\n", SKBS + XDPS);
}

int main(int argc, char **argv)
{
    if (argc != 7 || (strcmp(argv[1], "send") && strcmp(argv[1], "expect")))
        fail("usage: burst send|expect IFACE SOURCE_MAC TARGET_MAC SOURCE_IP TARGET_IP");
    struct ends ends = ends_argument(argv + 3);
    if (!strcmp(argv[1], "send"))
        send_burst(argv[2], &ends);
    else
        expect_burst(argv[2], &ends);
    return 0;
}
