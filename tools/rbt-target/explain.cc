#include "tools/rbt-target/explain.h"

#include <fmt/format.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "target/store/spec.h"
#include "tools/program/options.h"
#include "transport/coherence/monitor.h"

namespace rbt::tools {

namespace {

void print_lines(std::string_view text) {
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    fmt::print("  {}\n", text.substr(at, end - at));
    at = end + 1;
  }
}

}  // namespace

Result<void> explain(const std::vector<std::string>& specs) {
  const SystemClock clock;
  auto random = Random::from_entropy();
  const auto logger = make_stderr_logger(LogLevel::warning);
  auto monitor = transport::coherence::Monitor::start(clock, *logger);
  for (const auto& spec : specs) {
    auto store = target::make_store(spec, {.clock = clock,
                                           .random = random,
                                           .logger = *logger,
                                           .monitor = monitor ? monitor->get() : nullptr,
                                           .explain_only = true});
    if (!store) return failure(std::move(store.error()));
    const auto geometry = (*store)->geometry();
    fmt::print("{}\n  {} blocks of {} bytes{}{}\n", spec, geometry.blocks.value(), geometry.block_shift.block_size(),
               geometry.read_only ? ", read-only" : "", geometry.write_cache ? ", with a volatile write cache" : "");
    const std::string how = (*store)->explain();
    if (!how.empty()) print_lines(how);
  }
  fmt::print("on this machine\n");
  if (!monitor) {
    print_lines(monitor.error().message());
    return {};
  }
  for (const auto& source : (*monitor)->explain())
    fmt::print("  {}: {}: {}\n", source.source, source.available ? "there" : "missing", source.text);
  return {};
}

}  // namespace rbt::tools
