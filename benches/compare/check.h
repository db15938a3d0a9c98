/* The checked burst, as both ends know it. */
#ifndef PODLANE_COMPARE_CHECK_H
#define PODLANE_COMPARE_CHECK_H

#define CHECK_SKBS 256
#define CHECK_XDPS 64
#define CHECK_XDP_SEED 0x10001 /* all xdp frames of the burst are the same frame */

#endif
