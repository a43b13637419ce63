#include "target/store/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "common/nvme/uuid.h"
#include "common/sizes.h"
#include "target/store/null_store.h"
#include "target/store/ram_store.h"
#include "target/store/spec_text.h"

namespace rbt::target {

namespace {

using Opened = Result<std::unique_ptr<Store>>;

struct Kind {
  SpecName name;
  Opened (*open)(std::string_view spec, const SpecPart& part, const StoreEnvironment& environment);
};

Identity fresh_identity(Random& random) {
  const nvme::Uuid uuid = nvme::Uuid::generate(random);
  Identity identity;
  std::memcpy(identity.data(), uuid.bytes().data(), identity.size());
  return identity;
}

/// What ram and null have in common: a size, in whole blocks.
struct Sized {
  std::optional<Bytes> size;
  const SpecOption* size_option = nullptr;
  BlockShift block_shift;
};

/// False: the option is none of these two.
Result<bool> take_sized(const SpecReader& reader, const SpecOption& option, Sized& sized) {
  if (option.key.text == "size") {
    auto size = reader.size(option);
    if (!size) return failure(std::move(size.error()));
    sized.size = *size;
    sized.size_option = &option;
    return true;
  }
  if (option.key.text == "block") {
    auto shift = reader.block(option);
    if (!shift) return failure(std::move(shift.error()));
    sized.block_shift = *shift;
    return true;
  }
  return false;
}

Result<Bytes> whole_size(const SpecReader& reader, const Sized& sized) {
  constexpr std::uint64_t kSizeMax = std::uint64_t{1} << 62;
  if (!sized.size) return failure(reader.missing("size=, like size=1GiB,"));
  if (sized.size->value() > kSizeMax) return failure(reader.problem(*sized.size_option, "at most 4 EiB are allowed"));
  const std::uint32_t block = sized.block_shift.block_size();
  if (!sized.block_shift.is_multiple(sized.size->value()))
    return failure(reader.problem(*sized.size_option,
                                  fmt::format("{} bytes are not whole blocks of {}: {} are", sized.size->value(), block,
                                              (sized.size->value() / block + 1) * block)));
  return *sized.size;
}

Opened open_ram(std::string_view spec, const SpecPart& part, const StoreEnvironment& environment) {
  const SpecReader reader(spec, part, "size=SIZE, block=512|1024|2048|4096, huge=auto|never");
  Sized sized;
  RamOptions options;
  for (const SpecOption& option : part.options) {
    auto taken = take_sized(reader, option, sized);
    if (!taken) return failure(std::move(taken.error()));
    if (*taken) continue;
    if (option.key.text != "huge") return failure(reader.unknown(option));
    auto word = reader.word(option, {"auto", "never"});
    if (!word) return failure(std::move(word.error()));
    options.huge_pages = *word == 0 ? transport::HugePages::if_any : transport::HugePages::never;
  }
  auto size = whole_size(reader, sized);
  if (!size) return failure(std::move(size.error()));
  options.size = *size;
  options.block_shift = sized.block_shift;
  return RamStore::create(std::string(spec), options, fresh_identity(environment.random));
}

Opened open_null(std::string_view spec, const SpecPart& part, const StoreEnvironment& environment) {
  const SpecReader reader(spec, part, "size=SIZE, block=512|1024|2048|4096");
  Sized sized;
  for (const SpecOption& option : part.options) {
    auto taken = take_sized(reader, option, sized);
    if (!taken) return failure(std::move(taken.error()));
    if (!*taken) return failure(reader.unknown(option));
  }
  auto size = whole_size(reader, sized);
  if (!size) return failure(std::move(size.error()));
  return NullStore::create(std::string(spec), {*size, sized.block_shift}, fresh_identity(environment.random));
}

constexpr std::array<Kind, 2> kKinds{{{{"ram", false}, open_ram}, {{"null", false}, open_null}}};

}  // namespace

std::string_view store_spec_help() noexcept {
  return "ram:size=SIZE[,block=512|1024|2048|4096][,huge=auto|never]   memory, gone with the process\n"
         "null:size=SIZE[,block=…]                                     zeroes; forgets what is written\n";
}

Result<std::unique_ptr<Store>> make_store(std::string_view spec, const StoreEnvironment& environment) {
  std::vector<SpecName> names;
  for (const Kind& kind : kKinds)
    names.push_back(kind.name);
  auto parts = parse_spec(spec, names);
  if (!parts) return failure(std::move(parts.error()));
  // Layers will be those parts that something follows; so far there are only stores, which stand alone.
  if (parts->size() > 1)
    return failure(spec_error(spec, (*parts)[1].name.at,
                              fmt::format("'{}:' is a store and wraps no other", parts->front().name.text)));
  const SpecPart& part = parts->front();
  const auto* const kind =
      std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& k) { return k.name.name == part.name.text; });
  return kind->open(spec, part, environment);
}

}  // namespace rbt::target
