#include "tools/rbt-connect/map/status.h"

namespace rbt::tools::map {

namespace {

using initiator::FenceKind;
using initiator::MemoryKind;

std::uint64_t milliseconds(Duration duration) {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(duration).count());
}

std::string_view word(FenceKind kind) noexcept {
  switch (kind) {
    case FenceKind::target: return "target";
    case FenceKind::keep_alive: return "keep_alive";
    case FenceKind::off: return "off";
  }
  return "unknown";
}

std::string_view word(MemoryKind kind) noexcept {
  switch (kind) {
    case MemoryKind::on: return "on";
    case MemoryKind::not_needed: return "not_needed";
    case MemoryKind::foreign: return "foreign";
    case MemoryKind::off: return "off";
  }
  return "unknown";
}

Json json_of(const initiator::VolumeTraffic& traffic) {
  const auto& latency = traffic.latency;
  return {{"requests", traffic.requests},
          {"bytes", traffic.bytes},
          {"errors", traffic.errors},
          {"latency_us",
           {{"mean", latency.mean_us()},
            {"p50", latency.quantile_us(0.5)},
            {"p90", latency.quantile_us(0.9)},
            {"p99", latency.quantile_us(0.99)},
            {"p99_9", latency.quantile_us(0.999)},
            {"max", latency.max_us()}}}};
}

}  // namespace

Json status_of(const Standing& standing, const initiator::Volume& volume) {
  const initiator::VolumeStatistics statistics = volume.statistics();
  return {{"state", initiator::name(standing.state)},
          {"reason", standing.reason},
          {"note", standing.note},
          {"path", volume.succession().uri},
          {"uptime_ms", milliseconds(standing.uptime)},
          {"state_ms", milliseconds(standing.since_change)},
          {"lanes", volume.lanes()},
          {"in_flight", volume.in_flight()},
          {"losses", statistics.losses},
          {"attempts", statistics.attempts},
          {"longest_loss_ms", milliseconds(statistics.longest_loss)},
          {"reissued", statistics.reissued},
          {"rewritten", statistics.rewritten},
          {"flushes", statistics.flushes},
          {"unflushed_bytes", statistics.unflushed},
          {"fence", word(statistics.fence)},
          {"memory", word(statistics.memory)},
          {"requests",
           {{"read", json_of(statistics.read)},
            {"write", json_of(statistics.write)},
            {"flush", json_of(statistics.flush)},
            {"discard", json_of(statistics.discard)}}}};
}

}  // namespace rbt::tools::map
