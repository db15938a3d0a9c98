/*
 * The least that the kernel path can be: a tc program at either host end that hands every frame to the other pod by
 * bpf_redirect_peer and looks at nothing.
 *
 *   peer IFACE IFACE    prints `ready`, then forwards until it is ended by a signal
 */
#include "kernel.h"

static void attach(const char *from, const char *to)
{
    const struct bpf_insn insns[] = {
        MOV_IMM(BPF_REG_1, (int)interface_index(to)),
        MOV_IMM(BPF_REG_2, 0),
        CALL(BPF_FUNC_redirect_peer),
        EXIT(),
    };
    int program = program_load(BPF_PROG_TYPE_SCHED_CLS, ATTACH_TCX_INGRESS, insns, ARRAY_LEN(insns));
    link_create(program, interface_index(from), ATTACH_TCX_INGRESS, 0, from);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        fail("usage: peer IFACE IFACE");
    attach(argv[1], argv[2]);
    attach(argv[2], argv[1]);
    puts("ready");
    fflush(stdout);
    pause();
    return 0;
}
