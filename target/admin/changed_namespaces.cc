#include "target/admin/changed_namespaces.h"

#include <algorithm>

namespace rbt::target {

void ChangedNamespaces::note(Nsid nsid) {
  if (many_) return;
  const auto at = std::lower_bound(changed_.begin(), changed_.end(), nsid);
  if (at != changed_.end() && *at == nsid) return;
  if (changed_.size() == kEntries) {
    many_ = true;
    changed_.clear();
    return;
  }
  changed_.insert(at, nsid);
}

ChangedNamespaces::Page ChangedNamespaces::page() const noexcept {
  Page page{};
  if (many_) page.front() = nvme::Le32(~std::uint32_t{0});
  std::transform(changed_.begin(), changed_.end(), page.begin(), [](Nsid nsid) { return nvme::Le32(nsid.value()); });
  return page;
}

void ChangedNamespaces::clear() noexcept {
  changed_.clear();
  many_ = false;
  told_ = false;
}

}  // namespace rbt::target
