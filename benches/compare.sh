#!/usr/bin/env bash
#
# The table of the end-to-end comparison: small frames, TCP, request/response of Podlane and its peers. `compare.sh --help`.
E2E_NAME=compare.sh exec "$(dirname "${BASH_SOURCE[0]}")/e2e/run.sh" --table "$@"
