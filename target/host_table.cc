#include "target/host_table.h"

#include <fmt/format.h>

#include <utility>

#include "common/check.h"
#include "common/log.h"

namespace rbt::target {

HostTable::Admission::Admission(Admission&& other) noexcept
    : table_(std::exchange(other.table_, nullptr)), host_(std::move(other.host_)), half_open_(other.half_open_) {}

HostTable::Admission& HostTable::Admission::operator=(Admission&& other) noexcept {
  std::swap(table_, other.table_);
  std::swap(host_, other.host_);
  std::swap(half_open_, other.half_open_);
  return *this;
}

HostTable::Admission::~Admission() {
  if (table_ != nullptr) table_->leave(host_, half_open_);
}

void HostTable::Admission::connected() noexcept {
  if (table_ != nullptr && std::exchange(half_open_, false)) table_->close_half(host_);
}

tl::expected<HostTable::Admission, std::string> HostTable::admit(const std::string& host) {
  const std::lock_guard lock(mutex_);
  const auto known = by_host_.find(host);
  const Count of_host = known != by_host_.end() ? known->second : Count{};
  if (all_.connections >= limits_.connections_max)
    return tl::unexpected(fmt::format("there are {} connections, which is the most", limits_.connections_max));
  if (of_host.connections >= limits_.connections_per_host)
    return tl::unexpected(fmt::format("{} has {} connections, which is the most that one host may have",
                                      printable(host), limits_.connections_per_host));
  if (all_.half_open >= limits_.half_open_max)
    return tl::unexpected(
        fmt::format("there are {} connections without a successful Connect, which is the most", limits_.half_open_max));
  if (of_host.half_open >= limits_.half_open_per_host)
    return tl::unexpected(
        fmt::format("{} has {} connections without a successful Connect, which is the most that one host may have",
                    printable(host), limits_.half_open_per_host));
  Count& count = known != by_host_.end() ? known->second : by_host_[host];
  ++count.connections, ++count.half_open;
  ++all_.connections, ++all_.half_open;
  return Admission(*this, host);
}

void HostTable::close_half(const std::string& host) noexcept {
  const std::lock_guard lock(mutex_);
  --by_host_.at(host).half_open;
  --all_.half_open;
}

void HostTable::leave(const std::string& host, bool half_open) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = by_host_.find(host);
  check(found != by_host_.end() && found->second.connections > 0, "a host leaves as often as it was admitted");
  --found->second.connections, --all_.connections;
  if (half_open) --found->second.half_open, --all_.half_open;
  if (found->second.connections == 0) by_host_.erase(found);
}

}  // namespace rbt::target
