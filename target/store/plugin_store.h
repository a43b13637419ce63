#pragma once
// A store that a shared library implements: rbt_store_plugin.h is what it sees of us.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"
#include "target/store/plugin_library.h"
#include "target/store/range_lock.h"
#include "target/store/spec.h"
#include "target/store/store.h"
#include "transport/memory/registered_memory.h"

namespace rbt::target {

struct PluginOptions {
  std::string path;
  std::vector<std::pair<std::string, std::string>> options;  ///< key, value; passed on as they are
};

/// Thread-safe, as far as the plugin is.
class PluginStore final : public Store {
 public:
  /// Errors name the plugin, what was expected and what was seen; or give the plugin's own words.
  [[nodiscard]] static Result<std::unique_ptr<Store>> create(std::string spec, const PluginOptions& options,
                                                             const StoreEnvironment& environment);
  ~PluginStore() override;

  [[nodiscard]] Geometry geometry() const override { return geometry_; }
  [[nodiscard]] const Identity& identity() const noexcept override { return identity_; }
  [[nodiscard]] const std::string& spec() const noexcept override { return spec_; }
  [[nodiscard]] std::string explain() const override {
    return mapped_ ? "the plugin's memory; served in place, without a copy, to hosts whose device can register it"
                   : "by way of buffers: the plugin offers no memory (map_region)";
  }
  [[nodiscard]] Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) override;
  [[nodiscard]] Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override;

  // For queues.
  [[nodiscard]] const struct rbt_store_plugin& calls() const noexcept { return library_.calls(); }
  [[nodiscard]] void* handle() const noexcept { return handle_; }
  [[nodiscard]] bool native_fua() const noexcept { return native_fua_; }
  [[nodiscard]] RangeLock& range_lock() noexcept { return *range_lock_; }
  /// The plugin's memory, if that is the store. Null: it is asked for everything.
  [[nodiscard]] transport::RegisteredMemory* mapped() noexcept { return mapped_ ? &*mapped_ : nullptr; }

 private:
  PluginStore(std::string spec, PluginLibrary library, std::string path, Logger& logger);
  [[nodiscard]] Result<void> open(const PluginOptions& options);
  [[nodiscard]] Result<void> describe();
  [[nodiscard]] Result<void> map();
  [[nodiscard]] Error said(std::string_view what, const std::string& reason) const;
  [[nodiscard]] Error unfit(std::string_view what) const;

  std::string spec_;
  std::string path_;
  PluginLibrary library_;
  Logger& logger_;
  struct rbt_host host_ {};
  void* handle_ = nullptr;
  Geometry geometry_;
  std::optional<Identity> own_identity_;
  Identity identity_{};
  bool native_fua_ = false;
  std::optional<RangeLock> range_lock_;  // once it is known how large it is
  std::optional<transport::RegisteredMemory> mapped_;
};

/// What a plugin's status means; anything that is none is a failure of the medium.
[[nodiscard]] StoreStatus plugin_status(int status, Intent intent) noexcept;

}  // namespace rbt::target
