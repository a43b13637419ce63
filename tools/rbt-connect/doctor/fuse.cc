#include "tools/rbt-connect/doctor/machine.h"

namespace rbt::tools::doctor {

// A file by FUSE, and a loop device on it: where the kernel has neither ublk nor NBD.
Finding examine_fuse(const Machine& machine) {
  Finding finding{.subject = "fuse", .purpose = "a file (nbdfuse), with a loop device a block device"};
  const auto fuse = examine_device(
      machine, {.path = "/dev/fuse", .module = "fuse", .package = "boot a kernel that has CONFIG_FUSE_FS"});
  const auto loop = examine_device(
      machine,
      {.path = "/dev/loop-control", .module = "loop", .package = "boot a kernel that has CONFIG_BLK_DEV_LOOP"});
  finding.seen = fuse.seen + ", " + loop.seen;
  if (!fuse.usable) {
    finding.verdict = Verdict::missing;
    finding.remedy = fuse.remedy;
  } else if (!exists(machine, "/usr/bin/nbdfuse")) {
    finding.verdict = Verdict::missing;
    finding.seen += ", there is no /usr/bin/nbdfuse";
    finding.remedy = "install libnbd-bin (apt install libnbd-bin fuse3)";
  } else if (!loop.usable) {
    finding.verdict = Verdict::partial;
    finding.remedy = loop.remedy;
  }
  return finding;
}

}  // namespace rbt::tools::doctor
