#pragma once
// Who has how many connections, so that no host takes what is there for all.

#include <cstdint>
#include <mutex>
#include <string>
#include <tl/expected.hpp>
#include <unordered_map>

#include "target/limits.h"

namespace rbt::target {

/// A host is what its fabric knows of it before it has said anything: an address, or a user of this machine. Thread-safe.
class HostTable {
 public:
  explicit HostTable(const TargetLimits& limits) noexcept : limits_(limits) {}

  /// One connection's place, from its request on: half open until connected(), given back when this goes.
  class Admission {
   public:
    Admission() noexcept = default;
    Admission(Admission&& other) noexcept;
    Admission& operator=(Admission&& other) noexcept;
    ~Admission();
    /// Connect has succeeded, and the host has authenticated itself where it must.
    void connected() noexcept;

   private:
    friend class HostTable;
    Admission(HostTable& table, std::string host) noexcept : table_(&table), host_(std::move(host)) {}
    HostTable* table_ = nullptr;
    std::string host_;
    bool half_open_ = true;
  };

  /// Or which limit it is that `host` has reached.
  [[nodiscard]] tl::expected<Admission, std::string> admit(const std::string& host);

 private:
  struct Count {
    std::uint32_t connections = 0;
    std::uint32_t half_open = 0;
  };
  void close_half(const std::string& host) noexcept;
  void leave(const std::string& host, bool half_open) noexcept;

  const TargetLimits limits_;
  std::mutex mutex_;
  Count all_;                                       // guarded by mutex_
  std::unordered_map<std::string, Count> by_host_;  // guarded by mutex_; those that have a connection
};

}  // namespace rbt::target
