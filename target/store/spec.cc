#include "target/store/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "common/log.h"
#include "common/nvme/uuid.h"
#include "target/store/atomicity.h"
#include "target/store/file_store.h"
#include "target/store/identity.h"
#include "target/store/map_store.h"
#include "target/store/nbd_store.h"
#include "target/store/null_store.h"
#include "target/store/plugin_store.h"
#include "target/store/ram_store.h"
#include "target/store/spec_layers.h"
#include "target/store/spec_text.h"

namespace rbt::target {

namespace {

using Opened = Result<std::unique_ptr<Store>>;

struct Kind {
  SpecName name;
  Opened (*open)(std::string_view spec, const SpecPart& part, const StoreEnvironment& environment);
};

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

Result<Atomicity> read_atomicity(const SpecReader& reader, const SpecOption& option) {
  constexpr std::array kWords{Atomicity::automatic, Atomicity::in_place, Atomicity::shadow};
  return reader.word(option, {"auto", "in-place", "shadow"}).map([&](std::size_t word) { return kWords.at(word); });
}

Opened open_ram(std::string_view spec, const SpecPart& part, const StoreEnvironment& environment) {
  const SpecReader reader(spec, part,
                          "size=SIZE, block=512|1024|2048|4096, huge=auto|never, atomic=auto|in-place|shadow");
  Sized sized;
  RamOptions options;
  for (const SpecOption& option : part.options) {
    auto taken = take_sized(reader, option, sized);
    if (!taken) return failure(std::move(taken.error()));
    if (*taken) continue;
    if (option.key.text == "atomic") {
      auto atomicity = read_atomicity(reader, option);
      if (!atomicity) return failure(std::move(atomicity.error()));
      options.atomicity = *atomicity;
      continue;
    }
    if (option.key.text != "huge") return failure(reader.unknown(option));
    auto word = reader.word(option, {"auto", "never"});
    if (!word) return failure(std::move(word.error()));
    options.huge_pages = *word == 0 ? transport::HugePages::if_any : transport::HugePages::never;
  }
  auto size = whole_size(reader, sized);
  if (!size) return failure(std::move(size.error()));
  options.size = *size;
  options.block_shift = sized.block_shift;
  return RamStore::create(std::string(spec), options, fresh_identity(environment.random), environment.logger,
                          environment.arena);
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
  return NullStore::create(std::string(spec), {*size, sized.block_shift}, fresh_identity(environment.random),
                           environment.arena);
}

Result<Identity> read_identity(const SpecReader& reader, const SpecOption& option) {
  auto text = reader.value(option);
  if (!text) return failure(std::move(text.error()));
  const auto uuid = nvme::Uuid::parse(*text);
  if (!uuid || uuid->is_zero())
    return failure(reader.problem(option, fmt::format("'{}' is not a UUID, which looks like "
                                                      "6c0a1e2b-0f0c-4b0e-9a51-3d5d8a3a9c11",
                                                      printable(*text))));
  return identity_of(*uuid);
}

/// What file: and map: have in common. False: the option is none of these.
template <typename Options>
Result<bool> take_medium_option(const SpecReader& reader, const SpecOption& option, Options& options) {
  const std::string& key = option.key.text;
  if (key == "readonly") {
    options.read_only = true;
    return reader.flag(option).map([] { return true; });
  }
  if (key == "block")
    return reader.block(option).map([&](BlockShift shift) {
      options.block_shift = shift;
      return true;
    });
  if (key != "uuid") return false;
  return read_identity(reader, option).map([&](const Identity& identity) {
    options.identity = identity;
    return true;
  });
}

Opened open_file(std::string_view spec, const SpecPart& part, const StoreEnvironment& environment) {
  const SpecReader reader(spec, part, "block=512|1024|2048|4096, readonly, direct=auto|on|off, uuid=UUID");
  if (!part.argument) return failure(reader.missing("the path of a file or a block device"));
  FileOptions options;
  options.name.path = part.argument->text;
  for (const SpecOption& option : part.options) {
    auto taken = take_medium_option(reader, option, options);
    if (!taken) return failure(std::move(taken.error()));
    if (*taken) continue;
    if (option.key.text != "direct") return failure(reader.unknown(option));
    constexpr std::array kWords{DirectIo::if_possible, DirectIo::always, DirectIo::never};
    auto word = reader.word(option, {"auto", "on", "off"});
    if (!word) return failure(std::move(word.error()));
    options.direct = kWords.at(*word);
  }
  return FileStore::create(std::string(spec), options, environment);
}

Opened open_map(std::string_view spec, const SpecPart& part, const StoreEnvironment& environment) {
  const SpecReader reader(spec, part, "block=512|1024|2048|4096, readonly, atomic=auto|in-place|shadow, uuid=UUID");
  if (!part.argument) return failure(reader.missing("the path of a memfd, a file or a devdax device"));
  MapOptions options;
  options.path = part.argument->text;
  for (const SpecOption& option : part.options) {
    auto taken = take_medium_option(reader, option, options);
    if (!taken) return failure(std::move(taken.error()));
    if (*taken) continue;
    if (option.key.text != "atomic") return failure(reader.unknown(option));
    auto atomicity = read_atomicity(reader, option);
    if (!atomicity) return failure(std::move(atomicity.error()));
    options.atomicity = *atomicity;
  }
  return MapStore::create(std::string(spec), options, environment);
}

Result<void> take_nbd_option(const SpecReader& reader, const SpecOption& option, NbdOptions& options) {
  const std::string& key = option.key.text;
  if (key == "timeout") return reader.duration(option).map([&](Duration patience) { options.patience = patience; });
  if (key == "connections")
    return reader.number(option, 1, NbdOptions::kLinksMax).map([&](std::uint64_t number) {
      options.links_max = static_cast<std::uint32_t>(number);
    });
  if (key != "writes") return failure(reader.unknown(option));
  constexpr std::array kWords{NbdOptions::Writes::durable, NbdOptions::Writes::cached};
  return reader.word(option, {"durable", "cached"}).map([&](std::size_t word) { options.writes = kWords.at(word); });
}

Opened open_nbd(std::string_view spec, const SpecPart& part, const StoreEnvironment& environment) {
  const SpecReader reader(
      spec, part, "block=512|1024|2048|4096, readonly, writes=durable|cached, timeout=20s, connections=N, uuid=UUID");
  if (!part.argument) return failure(reader.missing("the URI of an NBD export, like nbd+unix:///?socket=PATH,"));
  NbdOptions options;
  options.uri = part.argument->text;
  for (const SpecOption& option : part.options) {
    auto taken = take_medium_option(reader, option, options);
    if (!taken) return failure(std::move(taken.error()));
    if (*taken) continue;
    if (auto own = take_nbd_option(reader, option, options); !own) return failure(std::move(own.error()));
  }
  return NbdStore::create(std::string(spec), options, environment);
}

Opened open_plugin(std::string_view spec, const SpecPart& part, const StoreEnvironment& environment) {
  const SpecReader reader(spec, part, "whatever the plugin knows");
  if (!part.argument) return failure(reader.missing("the path of a store plugin"));
  PluginOptions options{.path = part.argument->text, .options = {}};
  for (const SpecOption& option : part.options)
    options.options.emplace_back(option.key.text, option.value ? option.value->text : std::string());
  return PluginStore::create(std::string(spec), options, environment);
}

constexpr std::array<Kind, 6> kKinds{{{{"file", true}, open_file},
                                      {{"map", true}, open_map},
                                      {{"nbd", true}, open_nbd},
                                      {{"null", false}, open_null},
                                      {{"plugin", true}, open_plugin},
                                      {{"ram", false}, open_ram}}};

/// The layers of a spec from the outside in; checks that what follows them is one store.
Result<std::vector<WrapStore>> understand_layers(std::string_view spec, const std::vector<SpecPart>& parts,
                                                 const StoreEnvironment& environment) {
  std::vector<WrapStore> layers;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const bool last = i + 1 == parts.size();
    const auto kinds = layer_kinds();
    const auto kind =
        std::find_if(kinds.begin(), kinds.end(), [&](const LayerKind& k) { return k.name.name == parts[i].name.text; });
    if (kind == kinds.end() && last) return layers;
    if (kind == kinds.end())
      return failure(spec_error(spec, parts[i + 1].name.at,
                                fmt::format("'{}:' is a store and wraps no other", parts[i].name.text)));
    if (last)
      return failure(spec_error(spec, spec.size(),
                                fmt::format("'{0}:' wraps a store, which is missing: {0}:…,file:/x", kind->name.name)));
    auto wrap = kind->understand(spec, parts[i], environment);
    if (!wrap) return failure(std::move(wrap.error()));
    layers.push_back(std::move(*wrap));
  }
  return layers;
}

}  // namespace

std::string_view store_spec_help() noexcept {
  return "file:PATH[,block=512|1024|2048|4096][,readonly][,direct=auto|on|off][,uuid=UUID]\n"
         "                                                             an image or a block device; ',' in PATH: \\,\n"
         "map:PATH[,block=512|1024|2048|4096][,readonly][,atomic=auto|in-place|shadow][,uuid=UUID]\n"
         "                                                             a memfd, a file on tmpfs or hugetlbfs, a "
         "devdax\n"
         "                                                             device: without a copy; other files as file: "
         "does;\n"
         "                                                             shadow: an image of --convert-image\n"
         "nbd:URI[,block=…][,readonly][,writes=durable|cached][,timeout=20s][,connections=N][,uuid=UUID]\n"
         "                                                             what an NBD server exports: qcow2 and more\n"
         "ram:size=SIZE[,block=512|1024|2048|4096][,huge=auto|never][,atomic=auto|in-place|shadow]\n"
         "                                                             memory, gone with the process\n"
         "null:size=SIZE[,block=…]                                     zeroes; forgets what is written\n"
         "plugin:PATH[,key=value…]                                     a store out of a shared library\n"
         "Layers, in front of a store or of each other:\n"
         "delay:TIME[-TIME][,OPERATION=TIME[-TIME]…][,seed=N],SPEC      makes it slow; OPERATION: read, write, "
         "commit,\n"
         "                                                             flush, discard, write_zeroes\n"
         "error:OPERATION[+OPERATION…][,lba=FIRST[-LAST]][,nth=N|every=N|probability=P][,seed=N][,status=WORD],SPEC\n"
         "                                                             lets operations fail\n"
         "drop-unflushed:[memory=SIZE,]SPEC                            keeps in memory what is not durable: dies with "
         "it\n"
         "stats:SPEC                                                   counts and times: SIGUSR1, and at the end\n";
}

Result<std::unique_ptr<Store>> make_store(std::string_view spec, const StoreEnvironment& environment) {
  std::vector<SpecName> names;
  for (const Kind& kind : kKinds)
    names.push_back(kind.name);
  for (const LayerKind& kind : layer_kinds())
    names.push_back(kind.name);
  auto parts = parse_spec(spec, names);
  if (!parts) return failure(std::move(parts.error()));
  // All of it is understood before anything is opened.
  auto layers = understand_layers(spec, *parts, environment);
  if (!layers) return failure(std::move(layers.error()));
  const SpecPart& part = parts->back();
  const auto* const kind =
      std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& k) { return k.name.name == part.name.text; });
  auto store = kind->open(spec, part, environment);
  for (auto wrap = layers->rbegin(); store && wrap != layers->rend(); ++wrap)
    store = (*wrap)(std::move(*store));
  return store;
}

}  // namespace rbt::target
