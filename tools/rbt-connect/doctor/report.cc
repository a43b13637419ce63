#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/rbt-connect/doctor/doctor.h"

namespace rbt::tools::doctor {

std::string_view name(Verdict verdict) noexcept {
  switch (verdict) {
    case Verdict::good: return "good";
    case Verdict::partial: return "partial";
    case Verdict::missing: return "missing";
  }
  return "unknown";
}

std::vector<Finding> examine(const Machine& machine) {
  return {examine_ublk(machine),    examine_nbd(machine),      examine_fuse(machine),
          examine_nbdkit(machine),  examine_rdma(machine),     examine_kernel_host(machine),
          examine_memlock(machine), examine_io_uring(machine), examine_userfaultfd(machine)};
}

std::string describe(const std::vector<Finding>& findings, Format format) {
  if (format == Format::json) {
    nlohmann::ordered_json json{{"version", 1}, {"findings", nlohmann::ordered_json::array()}};
    for (const Finding& finding : findings)
      json["findings"].push_back({{"subject", finding.subject},
                                  {"verdict", name(finding.verdict)},
                                  {"purpose", finding.purpose},
                                  {"seen", finding.seen},
                                  {"remedy", finding.remedy}});
    return json.dump(2) + "\n";
  }
  std::size_t width = 0;
  for (const Finding& finding : findings)
    width = std::max(width, finding.subject.size());
  std::string text;
  for (const Finding& finding : findings) {
    text += fmt::format("{:<{}}  {:<7}  {}\n", finding.subject, width, name(finding.verdict), finding.purpose);
    text += fmt::format("{:{}}  {:7}  {}\n", "", width, "", finding.seen);
    if (!finding.remedy.empty()) text += fmt::format("{:{}}  {:7}  -> {}\n", "", width, "", finding.remedy);
  }
  return text;
}

}  // namespace rbt::tools::doctor
