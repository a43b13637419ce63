#include <fmt/format.h>

#include <charconv>

#include "common/sizes.h"
#include "tools/rbt-connect/doctor/machine.h"

namespace rbt::tools::doctor {

namespace {

// A queue pair of 128 commands with 8 MiB to bounce in, an admin queue, and buffers: what rbt-connect copy has registered.
constexpr Bytes kComfortable(64 * kMiB);

// "Max locked memory  8388608  8388608  bytes": the soft limit; all there is for "unlimited".
std::optional<Bytes> soft_limit(const Machine& machine) {
  const auto limits = contents(machine, "/proc/self/limits");
  if (!limits) return std::nullopt;
  constexpr std::string_view kName = "Max locked memory";
  auto at = limits->find(kName);
  if (at == std::string::npos) return std::nullopt;
  at = limits->find_first_not_of(' ', at + kName.size());
  if (at == std::string::npos) return std::nullopt;
  if (limits->compare(at, 9, "unlimited") == 0) return Bytes(~std::uint64_t{0});
  std::uint64_t bytes = 0;
  const auto [end, error] = std::from_chars(limits->data() + at, limits->data() + limits->size(), bytes);
  if (error != std::errc()) return std::nullopt;
  return Bytes(bytes);
}

}  // namespace

Finding examine_memlock(const Machine& machine) {
  Finding finding{.subject = "memlock", .purpose = "memory registered with RDMA adapters is locked"};
  if (has(machine, Capability::ipc_lock)) {
    finding.seen = "CAP_IPC_LOCK: no limit holds";
    return finding;
  }
  const auto limit = soft_limit(machine);
  if (limit && *limit == Bytes(~std::uint64_t{0})) {
    finding.seen = "RLIMIT_MEMLOCK is unlimited";
    return finding;
  }
  finding.seen = limit ? fmt::format("RLIMIT_MEMLOCK is {}", format_bytes(*limit)) : "RLIMIT_MEMLOCK is not told";
  if (limit && *limit >= kComfortable) return finding;
  finding.verdict = Verdict::partial;
  finding.remedy =
      fmt::format("raise it to {} or more: `ulimit -l`, LimitMEMLOCK= of the unit, /etc/security/limits.conf",
                  format_bytes(kComfortable));
  return finding;
}

}  // namespace rbt::tools::doctor
