#include "tools/rbt-connect/doctor/machine.h"

namespace rbt::tools::doctor {

// The kernel's NBD driver, set up over netlink, which wants CAP_SYS_ADMIN.
Finding examine_nbd(const Machine& machine) {
  Finding finding{.subject = "nbd", .purpose = "block devices on kernels without ublk"};
  const auto device = examine_device(
      machine, {.path = "/dev/nbd0", .module = "nbd", .package = "boot a kernel that has CONFIG_BLK_DEV_NBD"});
  finding.seen = device.seen;
  finding.remedy = device.remedy;
  if (!device.usable) {
    finding.verdict = Verdict::missing;
  } else if (!has(machine, Capability::sys_admin)) {
    finding.verdict = Verdict::missing;
    finding.seen += ", this process has no CAP_SYS_ADMIN";
    finding.remedy = "run it as root";
  }
  return finding;
}

}  // namespace rbt::tools::doctor
