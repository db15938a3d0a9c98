// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The XDP program of a port in native mode whose driver hides nothing. It needs nothing that Linux 6.1 lacks.
 */
#include "steer.h"

SEC("xdp.frags")
int podlane_steer(struct xdp_md *ctx)
{
	bpf_tail_call_static(ctx, &stages, STAGE_FIRST);
	return steer_frame(ctx, ADMIT);
}

SEC("xdp.frags")
int podlane_steer_rec(struct xdp_md *ctx)
{
	return steer_recorded(ctx, ADMIT);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
