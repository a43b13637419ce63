// Ten lines of an embedder: both libraries link, and an address that makes no sense is refused with a reason.
#include <cstdio>

#include "common/uri.h"
#include "initiator/initiator.h"
#include "target/target.h"

int main() {
  const auto good = rbt::Uri::parse("nvme+shm:///nqn.2026-01.io.example:disk/1?socket=/tmp/s");
  const auto bad = rbt::Uri::parse("nvme+rdma://10.0.0.1:99999/nqn.2026-01.io.example:disk");
  if (!good || bad) return 1;
  std::puts(bad.error().message().c_str());
  return 0;
}
