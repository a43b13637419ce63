#include "tools/rbt-connect/doctor/machine.h"

namespace rbt::tools::doctor {

// ublk: block devices served by a process over io_uring. ADD_DEV wants CAP_SYS_ADMIN.
Finding examine_ublk(const Machine& machine) {
  Finding finding{.subject = "ublk", .purpose = "block devices, the fastest way"};
  const auto device =
      examine_device(machine, {.path = "/dev/ublk-control",
                               .module = "ublk_drv",
                               .package = "boot a kernel from 6.0 on that has CONFIG_BLK_DEV_UBLK; Debian 12: "
                                          "linux-image-amd64 of bookworm-backports"});
  finding.seen = device.seen;
  finding.remedy = device.remedy;
  if (!device.usable) {
    finding.verdict = Verdict::missing;
  } else if (!has(machine, Capability::sys_admin)) {
    finding.verdict = Verdict::missing;
    finding.seen += ", this process has no CAP_SYS_ADMIN";
    finding.remedy = "run it as root";
  } else if (machine.io_uring_error != 0) {
    finding.verdict = Verdict::missing;
    finding.seen += ", io_uring is refused";
    finding.remedy = "see io_uring";
  }
  return finding;
}

}  // namespace rbt::tools::doctor
