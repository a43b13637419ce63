#!/usr/bin/env bash
# The RDMA device is removed under a listener and its connection: both processes say so and end, and only then does the
# kernel let the device go.
# Usage: ci/softroce run tests/softroce/verbs_device_removal.sh DIRECTORY-OF-verbs_fabric_peer
set -u
source "$(dirname "$0")/lib.sh"
peer=${1:?directory of verbs_fabric_peer}/verbs_fabric_peer

start_daemon --name listener --ready '^listening' "$peer" listen "$RBT_RIG_ADDR" 4420 || bail "no listener"
listener=$daemon_pid
start_daemon --name client --ready '^established' "$peer" connect "$RBT_RIG_ADDR" 4420 || bail "no connection"
client=$daemon_pid

claim "The device goes within 20 s" timeout 20 rdma link del rxe1
wait "$listener"; listener_status=$?
wait "$client"; client_status=$?
claim "The listener's process has ended cleanly" test "$listener_status" = 0
claim "The client's process has ended cleanly" test "$client_status" = 0
claim "The listener was told" grep -q 'listener failed:.*RDMA device was removed' "$RBT_RIG_OUTPUT/listener.log"
# The device is both ends'; whichever is told first hangs up on the other, which may hear that before it is told.
claim "Its connection has ended" grep -q -E '^disconnected (device_removed|peer_closed)' "$RBT_RIG_OUTPUT/listener.log"
claim "The client's has, too" grep -q -E '^disconnected (device_removed|peer_closed)' "$RBT_RIG_OUTPUT/client.log"
claim "One of the two was told why" grep -q '^disconnected device_removed' "$RBT_RIG_OUTPUT/listener.log" "$RBT_RIG_OUTPUT/client.log"
claim "Without the device, listening says what to do" \
	sh -c "'$peer' listen '$RBT_RIG_ADDR' 4420 | grep -q 'no RDMA device on this machine: load rdma_rxe'"
