/*
 * Request and response: one byte there, one byte back, one at a time.
 *
 *   rr server KIND PORT                     serves until it is ended by a signal
 *   rr client KIND ADDRESS PORT SECONDS     prints `transactions=N seconds=S p50=µs p99=µs p999=µs`
 *
 * KIND is tcp (one connection), connect (a connection for each transaction), or udp.
 */
#define _GNU_SOURCE
#include "kernel.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#define SAMPLES 1000000

static void option_on(int fd, int level, int option)
{
    int on = 1;
    if (setsockopt(fd, level, option, &on, sizeof(on)))
        fail("cannot set an option of a socket: %s", strerror(errno));
}

static int open_socket(bool udp)
{
    int fd = socket(AF_INET, udp ? SOCK_DGRAM : SOCK_STREAM, 0);
    if (fd < 0)
        fail("cannot make a socket: %s", strerror(errno));
    option_on(fd, SOL_SOCKET, SO_REUSEADDR);
    if (!udp)
        option_on(fd, IPPROTO_TCP, TCP_NODELAY);
    return fd;
}

static void serve(bool udp, unsigned port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}, from;
    int fd = open_socket(udp);
    char byte;
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || (!udp && listen(fd, 128)))
        fail("cannot listen: %s", strerror(errno));
    while (udp) {
        socklen_t length = sizeof(from);
        if (recvfrom(fd, &byte, 1, 0, (struct sockaddr *)&from, &length) == 1)
            sendto(fd, &byte, 1, 0, (struct sockaddr *)&from, length);
    }
    for (;;) {
        int connection = accept(fd, NULL, NULL);
        if (connection < 0)
            fail("cannot accept: %s", strerror(errno));
        option_on(connection, IPPROTO_TCP, TCP_NODELAY);
        while (read(connection, &byte, 1) == 1 && write(connection, &byte, 1) == 1)
            ;
        close(connection);
    }
}

static int connected(bool udp, const struct sockaddr_in *address)
{
    int fd = open_socket(udp);
    struct timeval patience = {.tv_sec = 2};
    struct linger at_once = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    /* A closed connection shall not keep its port for a minute: there are thousands of them. */
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)))
        fail("cannot connect: %s", strerror(errno));
    return fd;
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void ask(const char *kind, const char *host, unsigned port, double seconds)
{
    static float times[SAMPLES]; /* µs */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    bool udp = !strcmp(kind, "udp"), anew = !strcmp(kind, "connect");
    size_t count = 0;
    char byte = 'x';
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        fail("\"%s\" is not an IPv4 address", host);
    int fd = anew ? -1 : connected(udp, &address);
    double start = now_s(), before = start, end = start;
    for (; end - start < seconds && count < SAMPLES; before = end, count++) {
        if (anew)
            fd = connected(udp, &address);
        if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
            fail("no answer after %zu transactions: %s", count, strerror(errno));
        if (anew)
            close(fd);
        end = now_s();
        times[count] = (float)((end - before) * 1e6);
    }
    qsort(times, count, sizeof(times[0]), ascending);
    printf("transactions=%zu seconds=%.6f p50=%.2f p99=%.2f p999=%.2f\n", count, end - start,
           (double)times[count / 2], (double)times[count * 99 / 100], (double)times[count * 999 / 1000]);
}

static const char *kind_argument(const char *kind)
{
    if (strcmp(kind, "tcp") && strcmp(kind, "connect") && strcmp(kind, "udp"))
        fail("\"%s\" is none of tcp, connect, udp", kind);
    return kind;
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "server"))
        serve(!strcmp(kind_argument(argv[2]), "udp"), (unsigned)number_argument(argv[3], 1, 65535));
    else if (argc == 6 && !strcmp(argv[1], "client"))
        ask(kind_argument(argv[2]), argv[3], (unsigned)number_argument(argv[4], 1, 65535),
            number_argument(argv[5], 0.1, 3600));
    else
        fail("usage: rr server KIND PORT | rr client KIND ADDRESS PORT SECONDS");
    return 0;
}
