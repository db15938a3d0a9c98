/*
 * A limit: an XDP program at either host end that hands every frame to the other one by a device map and looks at nothing.
 *
 *   devmap IFACE IFACE    prints `ready`, then forwards until it is ended by a signal
 */
#include "kernel.h"
#include <linux/if_link.h>

static void attach(const char *from, const char *to)
{
    uint32_t index = interface_index(to);
    int map = map_create(BPF_MAP_TYPE_DEVMAP, 4, 1);
    map_update(map, 0, &index);
    const struct bpf_insn insns[] = {
        MAP_FD(BPF_REG_1, map),
        MOV_IMM(BPF_REG_2, 0),
        MOV_IMM(BPF_REG_3, XDP_DROP),
        CALL(BPF_FUNC_redirect_map),
        EXIT(),
    };
    int program = program_load(BPF_PROG_TYPE_XDP, 0, insns, ARRAY_LEN(insns));
    link_create(program, interface_index(from), BPF_XDP, XDP_FLAGS_DRV_MODE, from);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("usage: devmap IFACE IFACE");
    attach(argv[1], argv[2]);
    attach(argv[2], argv[1]);
    puts("ready");
    fflush(stdout);
    pause();
    return 0;
}
