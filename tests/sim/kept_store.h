#pragma once
// A store that outlives the one who serves it, as a disk outlives a process.

#include <memory>

#include "target/store/store.h"

namespace rbt::test {

/// Stands for `kept`, which outlives it.
class KeptStore final : public target::Store {
 public:
  explicit KeptStore(target::Store& kept) : kept_(kept) {}
  [[nodiscard]] target::Geometry geometry() const override { return kept_.geometry(); }
  [[nodiscard]] const target::Identity& identity() const noexcept override { return kept_.identity(); }
  [[nodiscard]] const std::string& spec() const noexcept override { return kept_.spec(); }
  [[nodiscard]] Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t path_mtu) override {
    return kept_.prepare(domain, path_mtu);
  }
  [[nodiscard]] Result<std::unique_ptr<target::StoreQueue>> open_queue(
      const target::StoreQueueContext& context) override {
    return kept_.open_queue(context);
  }

 private:
  target::Store& kept_;
};

}  // namespace rbt::test
