#pragma once
// What atomic=shadow adds to a map store: the shadow image that its file is.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/result.h"
#include "target/store/image_table.h"
#include "target/store/map_look.h"
#include "target/store/mapping.h"
#include "target/store/shadow_image.h"
#include "transport/memory/registered_memory.h"
#include "transport/memory/shared_memory.h"

namespace rbt::target {

/// The table, and memory that stands for blocks of zeroes. Thread-safe.
class MapImage {
 public:
  /// The first bytes of what lies there; fewer if there are fewer, none of what is no file and no devdax.
  [[nodiscard]] static Result<std::vector<std::byte>> beginning(const std::string& path, MapKind kind);
  /// Which blocks it has. Errors: it is no such image, or lies where none can be served.
  [[nodiscard]] static Result<ShadowLayout> understand(const std::string& path, const MapFound& found);

  /// `layout` is what understand() has said. `size`: bytes that are there.
  [[nodiscard]] static Result<std::unique_ptr<MapImage>> open(const ShadowLayout& layout, std::uint64_t size,
                                                              const ImageTable::Read& read);

  [[nodiscard]] ImageTable& table() noexcept { return table_; }
  [[nodiscard]] const ShadowLayout& layout() const noexcept { return table_.layout(); }
  [[nodiscard]] transport::RegisteredMemory& zeroes() noexcept { return registered_zeroes_; }
  [[nodiscard]] Geometry geometry(Geometry geometry) const noexcept;

 private:
  MapImage(const ShadowLayout& layout, transport::SharedMemory zeroes);
  ImageTable table_;
  transport::SharedMemory zeroes_;
  transport::RegisteredMemory registered_zeroes_;
};

}  // namespace rbt::target
