#pragma once
// Disk images into rbt's shadow format (map:…,atomic=shadow) and out of it.

#include <cstdint>
#include <optional>
#include <string>

#include "common/result.h"
#include "target/store/spec.h"
#include "target/store/store.h"

namespace rbt::target {

enum class ImageForm : std::uint8_t {
  raw,     ///< the blocks, one after the other
  shadow,  ///< docs/shadow_image.md
};

struct ConvertOptions {
  std::string from;                                      ///< a file, a block device, a devdax device
  std::string to;                                        ///< a file that does not exist; or a devdax device
  ImageForm form = ImageForm::shadow;                    ///< of `to`; `from` is the other one
  std::optional<BlockShift> block_shift = std::nullopt;  ///< of a new shadow image; none: 512, or the device's own
  bool overwrite = false;                                ///< `to` is a device, and what it holds is lost
};

struct ConvertResult {
  Bytes size{};    ///< of the disk
  Bytes data{};    ///< of these, written as data; the rest is zeroes, which a file has as holes
  Bytes needed{};  ///< of `to`
  BlockShift block_shift{};
  Identity identity{};  ///< of a new shadow image
};

/// Told how far it is, now and then.
class ConvertObserver {
 public:
  virtual ~ConvertObserver() = default;
  /// False: leave off. What has been written is removed.
  [[nodiscard]] virtual bool on_converted(Bytes done, Bytes size) = 0;
};

/// `from` is locked against writers meanwhile: an image that is served is refused. A file is written under the name of `to`
/// with .part behind it, made durable and then given its name: under that name it is there as a whole or not at all,
/// whoever dies when. On a device the header is written last, so that half a shadow image is none. Slow: the caller's
/// thread.
[[nodiscard]] Result<ConvertResult> convert_image(const ConvertOptions& options, const StoreEnvironment& environment,
                                                  ConvertObserver& observer);

}  // namespace rbt::target
