#pragma once
// The text of a store spec, taken apart:
//
//   spec   = *layer store                   layers from the outside in: "delay:5ms,file:/x", "stats:ram:size=1GiB"
//   layer  = name ":" [ ( argument / option ) *( "," option ) "," ]
//   store  = name ":" [ argument ] *( "," option )
//   option = key [ "=" value ]
//
// A layer that is told nothing is followed by the next part at once: no argument of a layer begins with a name and a
// ':', while all that follows the ':' of a store is the store's ("file:delay:x" is the file "delay:x").
// A comma or a backslash that belongs to an argument or a value is written "\," or "\\"; a backslash before any other
// character stands for itself (udev makes names like "My\x20Disk"). A piece that begins with a name and a ':' begins
// the next part.

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/result.h"
#include "common/units.h"

namespace rbt::target {

/// A piece of the spec without its escapes, and the character at which it stood.
struct SpecPiece {
  std::string text;
  std::size_t at = 0;
};

struct SpecOption {
  SpecPiece key;
  std::optional<SpecPiece> value;  ///< none: a flag
};

struct SpecPart {
  SpecPiece name;
  std::optional<SpecPiece> argument;  ///< what follows the ':' directly, unless it is an option; never empty
  std::vector<SpecOption> options;
  std::size_t end = 0;  ///< the character behind it: where something missing would stand
};

/// Which stores and layers there are, and whether an argument follows the name.
struct SpecName {
  std::string_view name;
  bool has_argument = false;
  bool is_layer = false;  ///< wraps what follows
};

/// invalid_argument in three lines: the spec and what is wrong, the spec, a caret under character `at`.
[[nodiscard]] Error spec_error(std::string_view spec, std::size_t at, std::string_view what);

/// Any number of layers and one store, each with a name out of `known`; no key twice in a part.
[[nodiscard]] Result<std::vector<SpecPart>> parse_spec(std::string_view spec, const std::vector<SpecName>& known);

/// Reads the options of one part, each with an error that points at it.
class SpecReader {
 public:
  /// `allowed` is for messages: "size=SIZE, block=512|1024|2048|4096".
  SpecReader(std::string_view spec, const SpecPart& part, std::string_view allowed)
      : spec_(spec), part_(part), allowed_(allowed) {}

  [[nodiscard]] Error unknown(const SpecOption& option) const;
  [[nodiscard]] Error missing(std::string_view what) const;
  [[nodiscard]] Error problem(const SpecOption& option, std::string_view what) const;
  [[nodiscard]] Result<void> flag(const SpecOption& option) const;
  [[nodiscard]] Result<std::string> value(const SpecOption& option) const;
  [[nodiscard]] Result<Bytes> size(const SpecOption& option) const;
  [[nodiscard]] Result<Duration> duration(const SpecOption& option) const;
  [[nodiscard]] Result<BlockShift> block(const SpecOption& option) const;
  [[nodiscard]] Result<std::uint64_t> number(const SpecOption& option, std::uint64_t least, std::uint64_t most) const;
  /// The index of the value in `words`.
  [[nodiscard]] Result<std::size_t> word(const SpecOption& option, const std::vector<std::string_view>& words) const;

 private:
  std::string_view spec_;
  const SpecPart& part_;
  std::string_view allowed_;
};

}  // namespace rbt::target
