#include "target/store/spec_layers.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "common/log.h"
#include "common/sizes.h"
#include "target/store/delay_layer.h"
#include "target/store/drop_unflushed.h"
#include "target/store/error_layer.h"
#include "target/store/stats_layer.h"

namespace rbt::target {

namespace {

constexpr std::array kOperations{StoreOperation::read,  StoreOperation::write,   StoreOperation::commit,
                                 StoreOperation::flush, StoreOperation::discard, StoreOperation::write_zeroes};
constexpr std::string_view kOperationWords = "read, write, commit, flush, discard, write_zeroes";

std::optional<StoreOperation> operation_named(std::string_view text) noexcept {
  for (const StoreOperation operation : kOperations)
    if (name(operation) == text) return operation;
  return std::nullopt;
}

/// The argument of a layer, in the form of an option: for the same errors.
SpecOption as_option(const SpecPart& part) {
  return {part.name, part.argument};
}

Result<std::uint64_t> whole_number(const SpecReader& reader, const SpecOption& option, std::string_view text,
                                   std::uint64_t least) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || text.empty() || number < least)
    return failure(reader.problem(
        option, fmt::format("'{}' is not a whole number{}", printable(text), least == 0 ? "" : " from 1 on")));
  return number;
}

Result<std::uint64_t> number_of(const SpecReader& reader, const SpecOption& option, std::uint64_t least) {
  auto text = reader.value(option);
  if (!text) return failure(std::move(text.error()));
  return whole_number(reader, option, *text, least);
}

// ---- delay:TIME[-TIME][,OPERATION=TIME[-TIME]…][,seed=N]

// The target waits for its stores before it closes a connection.
constexpr Duration kDelayMax = std::chrono::seconds(60);

Result<DelayOptions::Range> delay_range(const SpecReader& reader, const SpecOption& option) {
  auto text = reader.value(option);
  if (!text) return failure(std::move(text.error()));
  const std::size_t dash = text->find('-');
  auto least = parse_duration(std::string_view(*text).substr(0, dash));
  auto most = dash == std::string::npos ? least : parse_duration(std::string_view(*text).substr(dash + 1));
  for (const auto* end : {&least, &most})
    if (!*end) return failure(reader.problem(option, end->error().message()));
  if (*most < *least) return failure(reader.problem(option, "the longer time comes second: 1ms-5ms"));
  if (*most > kDelayMax) return failure(reader.problem(option, "at most 60s are allowed"));
  return DelayOptions::Range{*least, *most};
}

Result<WrapStore> understand_delay(std::string_view spec, const SpecPart& part, const StoreEnvironment&) {
  const SpecReader reader(spec, part, "TIME or TIME-TIME, of an operation read=, commit=, flush=, …; seed=N");
  DelayOptions options;
  if (!part.argument && part.options.empty()) return failure(reader.missing("a time, like delay:5ms,"));
  if (part.argument) {
    auto range = delay_range(reader, as_option(part));
    if (!range) return failure(std::move(range.error()));
    options.of.fill(*range);
    // A write waits once: when its data has come.
    options.of.at(static_cast<std::size_t>(StoreOperation::write)) = {};
  }
  for (const SpecOption& option : part.options) {
    if (option.key.text == "seed") {
      auto seed = number_of(reader, option, 0);
      if (!seed) return failure(std::move(seed.error()));
      options.seed = *seed;
      continue;
    }
    const auto operation = operation_named(option.key.text);
    if (!operation) return failure(reader.unknown(option));
    auto range = delay_range(reader, option);
    if (!range) return failure(std::move(range.error()));
    options.of.at(static_cast<std::size_t>(*operation)) = *range;
  }
  return [options](std::unique_ptr<Store> below) -> Result<std::unique_ptr<Store>> {
    return make_delay_layer(std::move(below), options);
  };
}

// ---- error:OPERATION[+OPERATION…][,lba=FIRST[-LAST]][,nth=N|every=N|probability=P[,seed=N]][,status=WORD]

Result<std::uint32_t> operations_of(const SpecReader& reader, const SpecPart& part) {
  if (!part.argument) return (std::uint32_t{1} << kStoreOperations) - 1;
  std::uint32_t operations = 0;
  for (std::string_view rest = part.argument->text;;) {
    const std::size_t plus = rest.find('+');
    const auto operation = operation_named(rest.substr(0, plus));
    if (!operation)
      return failure(reader.problem(
          as_option(part), fmt::format("'{}' is not one of {}", printable(rest.substr(0, plus)), kOperationWords)));
    operations |= 1U << static_cast<unsigned>(*operation);
    if (plus == std::string_view::npos) return operations;
    rest.remove_prefix(plus + 1);
  }
}

Result<BlockRange> lba_range(const SpecReader& reader, const SpecOption& option) {
  auto text = reader.value(option);
  if (!text) return failure(std::move(text.error()));
  const std::size_t dash = text->find('-');
  auto first = whole_number(reader, option, std::string_view(*text).substr(0, dash), 0);
  auto last =
      dash == std::string::npos ? first : whole_number(reader, option, std::string_view(*text).substr(dash + 1), 0);
  for (auto* end : {&first, &last})
    if (!*end) return failure(std::move(end->error()));
  if (*last < *first) return failure(reader.problem(option, "the last block is not before the first: lba=0-99"));
  if (*last - *first == ~std::uint64_t{0}) return failure(reader.problem(option, "no disk is that long"));
  return BlockRange{Lba(*first), Blocks(*last - *first + 1)};
}

Result<std::uint64_t> chance_of(const SpecReader& reader, const SpecOption& option) {
  auto text = reader.value(option);
  if (!text) return failure(std::move(text.error()));
  double probability = -1;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), probability);
  if (error != std::errc() || end != text->data() + text->size() || !(probability > 0 && probability <= 1))
    return failure(reader.problem(
        option, fmt::format("'{}' is not a probability above 0 and up to 1, like 0.01", printable(*text))));
  return static_cast<std::uint64_t>(probability * 4294967296.0);
}

Result<StoreStatus> status_named(const SpecReader& reader, const SpecOption& option) {
  constexpr std::array kStatuses{StoreStatus::read_error, StoreStatus::write_error,  StoreStatus::no_space,
                                 StoreStatus::read_only,  StoreStatus::out_of_range, StoreStatus::unsupported,
                                 StoreStatus::unavailable};
  return reader
      .word(option,
            {"read_error", "write_error", "no_space", "read_only", "out_of_range", "unsupported", "unavailable"})
      .map([&](std::size_t word) { return kStatuses.at(word); });
}

Result<void> take_error_option(const SpecReader& reader, const SpecOption& option, ErrorOptions& options) {
  const std::string& key = option.key.text;
  const auto set = [](auto& field) { return [&field](auto value) { field = value; }; };
  if (key == "lba") return lba_range(reader, option).map(set(options.range));
  if (key == "status") return status_named(reader, option).map(set(options.status));
  if (key == "seed") return number_of(reader, option, 0).map(set(options.seed));
  if (key != "nth" && key != "every" && key != "probability") return failure(reader.unknown(option));
  if (options.nth + options.every + options.chance != 0)
    return failure(reader.problem(option, "only one of nth=, every= and probability= can hold"));
  if (key == "nth") return number_of(reader, option, 1).map(set(options.nth));
  if (key == "every") return number_of(reader, option, 1).map(set(options.every));
  return chance_of(reader, option).map(set(options.chance));
}

Result<WrapStore> understand_error(std::string_view spec, const SpecPart& part, const StoreEnvironment&) {
  const SpecReader reader(spec, part, "lba=FIRST[-LAST], nth=N or every=N or probability=P, seed=N, status=WORD");
  ErrorOptions options;
  auto operations = operations_of(reader, part);
  if (!operations) return failure(std::move(operations.error()));
  options.operations = *operations;
  for (const SpecOption& option : part.options)
    if (auto taken = take_error_option(reader, option, options); !taken) return failure(std::move(taken.error()));
  return [options](std::unique_ptr<Store> below) -> Result<std::unique_ptr<Store>> {
    return make_error_layer(std::move(below), options);
  };
}

// ---- stats:

Result<WrapStore> understand_stats(std::string_view spec, const SpecPart& part, const StoreEnvironment& environment) {
  const SpecReader reader(spec, part, "it has none");
  if (!part.options.empty()) return failure(reader.unknown(part.options.front()));
  return [&logger = environment.logger](std::unique_ptr<Store> below) -> Result<std::unique_ptr<Store>> {
    return make_stats_layer(std::move(below), logger);
  };
}

// ---- drop-unflushed:[memory=SIZE]

Result<WrapStore> understand_drop(std::string_view spec, const SpecPart& part, const StoreEnvironment&) {
  const SpecReader reader(spec, part, "memory=SIZE");
  DropUnflushedOptions options;
  for (const SpecOption& option : part.options) {
    if (option.key.text != "memory") return failure(reader.unknown(option));
    auto size = reader.size(option);
    if (!size) return failure(std::move(size.error()));
    if (size->value() < DropUnflushedOptions::kMemoryMin)
      return failure(reader.problem(option, "at least 4 MiB are needed: the longest transfer has 2"));
    options.memory = *size;
  }
  return [options](std::unique_ptr<Store> below) -> Result<std::unique_ptr<Store>> {
    return DropUnflushed::create(std::move(below), options);
  };
}

constexpr std::array<LayerKind, 4> kLayers{{{{"delay", true, true}, understand_delay},
                                            {{"drop-unflushed", false, true}, understand_drop},
                                            {{"error", true, true}, understand_error},
                                            {{"stats", false, true}, understand_stats}}};

}  // namespace

std::span<const LayerKind> layer_kinds() noexcept {
  return kLayers;
}

}  // namespace rbt::target
