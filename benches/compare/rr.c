/*
 * TCP request and response: one byte there, one byte back, one at a time.
 *
 *   rr server PORT               serves one connection, then ends
 *   rr client ADDRESS PORT SECONDS   prints `transactions=N seconds=S`
 */
#define _GNU_SOURCE
#include "kernel.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static int tcp_socket(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
        fail("cannot make a socket: %s", strerror(errno));
    return fd;
}

static void serve(unsigned port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int listener = tcp_socket(), fd;
    char byte;
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 1))
        fail("cannot listen: %s", strerror(errno));
    fd = accept(listener, NULL, NULL);
    while (fd >= 0 && read(fd, &byte, 1) == 1)
        if (write(fd, &byte, 1) != 1)
            break;
}

static void ask(const char *host, unsigned port, double seconds)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    unsigned long long transactions = 0;
    char byte = 'x';
    int fd = tcp_socket();
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        fail("\"%s\" is not an IPv4 address", host);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
        fail("cannot connect: %s", strerror(errno));
    double start = now_s(), end = start;
    for (; end - start < seconds; end = now_s(), transactions++)
        if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
            fail("the connection broke after %llu transactions", transactions);
    printf("transactions=%llu seconds=%.6f\n", transactions, end - start);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "server"))
        serve((unsigned)number_argument(argv[2], 1, 65535));
    else if (argc == 5 && !strcmp(argv[1], "client"))
        ask(argv[2], (unsigned)number_argument(argv[3], 1, 65535), number_argument(argv[4], 0.1, 3600));
    else
        fail("usage: rr server PORT | rr client ADDRESS PORT SECONDS");
    return 0;
}
