#pragma once
// From the words of a layer in a spec to the layer.

#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "common/result.h"
#include "target/store/spec.h"
#include "target/store/spec_text.h"
#include "target/store/store.h"

namespace rbt::target {

/// Puts the layer over the store that follows in the spec.
using WrapStore = std::function<Result<std::unique_ptr<Store>>(std::unique_ptr<Store> below)>;

struct LayerKind {
  SpecName name;
  Result<WrapStore> (*understand)(std::string_view spec, const SpecPart& part, const StoreEnvironment& environment);
};

[[nodiscard]] std::span<const LayerKind> layer_kinds() noexcept;

}  // namespace rbt::target
