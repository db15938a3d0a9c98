/*
 * Gives every frame of an interface to one AF_XDP socket, native XDP, packets of several pieces included.
 *
 * Returns a descriptor; closing it takes the program away again. Ends the process when the kernel refuses.
 */
#include "kernel.h"
#include <linux/if_link.h>

int podlane_steer(const char *interface, int socket)
{
    int map = map_create(BPF_MAP_TYPE_XSKMAP, 4, 1);
    map_update(map, 0, &socket);
    const struct bpf_insn insns[] = {
        LOAD(BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct xdp_md, rx_queue_index)),
        MAP_FD(BPF_REG_1, map),
        MOV_IMM(BPF_REG_3, XDP_DROP),
        CALL(BPF_FUNC_redirect_map),
        EXIT(),
    };
    union bpf_attr attr = {
        .prog_type = BPF_PROG_TYPE_XDP,
        .expected_attach_type = BPF_XDP,
        .prog_flags = BPF_F_XDP_HAS_FRAGS,
        .insns = (uintptr_t)insns,
        .insn_cnt = ARRAY_LEN(insns),
        .license = (uintptr_t)"GPL",
    };
    int program = bpf(BPF_PROG_LOAD, &attr);
    if (program < 0)
        fail("cannot load an XDP program: %s", strerror(errno));
    int link = link_create(program, interface_index(interface), BPF_XDP, XDP_FLAGS_DRV_MODE, interface);
    close(program);
    close(map);
    return link;
}
