/*
 * The frames of the comparison: Ethernet, IPv4, UDP, with every checksum complete, so that each forwarder may look as
 * closely as it likes. Frame n of the checked burst has a length and content that follow from n alone; sender and
 * receiver build it each for itself and compare.
 */
#ifndef PODLANE_COMPARE_FRAMES_H
#define PODLANE_COMPARE_FRAMES_H

#include "kernel.h"

#define FRAME_MAX 1514
/* 64 bytes on a wire: a veth carries no frame check sequence, so 60 are left. */
#define FRAME_SMALL 60
#define HEADERS 42
#define CHECK_PORT 9001 /* of the checked burst's skbs */

struct ends {
    uint8_t source_mac[6], target_mac[6];
    uint8_t source_ip[4], target_ip[4];
};

static inline void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* RFC 1071, over a length that may be odd, folded but not inverted. */
static inline uint32_t sum16(const uint8_t *bytes, unsigned length, uint32_t sum)
{
    for (unsigned i = 0; i < length; i++)
        sum += i % 2 ? bytes[i] : (uint32_t)bytes[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

/* Writes a whole frame of `length` bytes, with the payload that `seed` gives. */
static inline void frame_write(uint8_t *frame, unsigned length, const struct ends *ends, unsigned port, uint32_t seed)
{
    uint8_t *ip = frame + 14, *udp = frame + 34;
    memset(frame, 0, HEADERS);
    memcpy(frame, ends->target_mac, 6);
    memcpy(frame + 6, ends->source_mac, 6);
    put16(frame + 12, 0x0800);
    ip[0] = 0x45;
    put16(ip + 2, length - 14);
    put16(ip + 4, seed & 0xffff);
    put16(ip + 6, 0x4000); /* don't fragment */
    ip[8] = 64;
    ip[9] = 17;
    memcpy(ip + 12, ends->source_ip, 4);
    memcpy(ip + 16, ends->target_ip, 4);
    put16(ip + 10, ~sum16(ip, 20, 0) & 0xffff);
    put16(udp, 40000);
    put16(udp + 2, port);
    put16(udp + 4, length - 34);
    uint32_t random = seed * 2654435761u + 1;
    for (unsigned i = HEADERS; i < length; i++) {
        random = random * 1664525 + 1013904223;
        frame[i] = (uint8_t)(random >> 24);
    }
    uint32_t sum = sum16(udp, length - 34, sum16(ip + 12, 8, 17 + length - 34));
    put16(udp + 6, sum == 0xffff ? 0xffff : ~sum & 0xffff);
}

/* The length of frame n of the checked burst, from the smallest to a full 1500-byte packet. */
static inline unsigned check_length(uint32_t n)
{
    return n == 0 ? FRAME_SMALL : n == 1 ? FRAME_MAX : FRAME_SMALL + (n * 7919) % (FRAME_MAX - FRAME_SMALL + 1);
}

/* SOURCE_MAC TARGET_MAC SOURCE_IP TARGET_IP of a command line. */
static inline struct ends ends_argument(char **argument)
{
    struct ends ends;
    uint8_t *macs[] = {ends.source_mac, ends.target_mac}, *ips[] = {ends.source_ip, ends.target_ip};
    char rest;
    for (int i = 0; i < 2; i++) {
        uint8_t *m = macs[i], *p = ips[i];
        if (sscanf(argument[i], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx%c", m, m + 1, m + 2, m + 3, m + 4, m + 5, &rest) != 6)
            fail("\"%s\" is not a MAC address", argument[i]);
        if (sscanf(argument[2 + i], "%hhu.%hhu.%hhu.%hhu%c", p, p + 1, p + 2, p + 3, &rest) != 4)
            fail("\"%s\" is not an IPv4 address", argument[2 + i]);
    }
    return ends;
}

#endif
