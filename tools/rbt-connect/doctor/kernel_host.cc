#include "tools/rbt-connect/doctor/machine.h"

namespace rbt::tools::doctor {

// Linux's own initiator, for whom rbt-target is a target like any other.
Finding examine_kernel_host(const Machine& machine) {
  Finding finding{.subject = "nvme-rdma", .purpose = "Linux's own host: nvme connect -t rdma"};
  switch (find_module(machine, "nvme_rdma")) {
    case Module::present: finding.seen = "nvme_rdma is in the kernel"; return finding;
    case Module::loadable:
      finding.verdict = Verdict::partial;
      finding.seen = "nvme_rdma is not loaded";
      finding.remedy = "modprobe nvme_rdma";
      return finding;
    case Module::hidden:
    case Module::absent: break;
  }
  finding.verdict = Verdict::missing;
  finding.seen = without(machine, "nvme_rdma");
  finding.remedy = "boot a kernel that has CONFIG_NVME_RDMA, or do without: rbt needs it for nothing";
  return finding;
}

}  // namespace rbt::tools::doctor
