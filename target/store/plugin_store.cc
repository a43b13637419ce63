#include "target/store/plugin_store.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "common/log.h"
#include "target/store/identity.h"
#include "target/store/mapped_plugin_queue.h"
#include "target/store/plugin_queue.h"

namespace rbt::target {

namespace {

using Text = std::array<char, 1024>;

std::string words(Text& text) {
  text.back() = '\0';
  return text.front() == '\0' ? "it gives no reason" : printable(text.data(), text.size());
}

void log_line(void* context, int level, const char* message) {
  constexpr std::array kLevels{LogLevel::debug, LogLevel::info, LogLevel::warning, LogLevel::error};
  const auto index = static_cast<std::size_t>(std::clamp(level, 0, 3));
  static_cast<Logger*>(context)->log(kLevels.at(index), "{}", message);
}

Ability ability_of(std::uint8_t value) noexcept {
  return value == RBT_NONE ? Ability::none : value == RBT_EMULATE ? Ability::emulated : Ability::native;
}

}  // namespace

StoreStatus plugin_status(int status, Intent intent) noexcept {
  switch (status) {
    case RBT_OK: return StoreStatus::ok;
    case RBT_READ_ERROR: return StoreStatus::read_error;
    case RBT_WRITE_ERROR: return StoreStatus::write_error;
    case RBT_NO_SPACE: return StoreStatus::no_space;
    case RBT_READ_ONLY: return StoreStatus::read_only;
    case RBT_OUT_OF_RANGE: return StoreStatus::out_of_range;
    case RBT_UNSUPPORTED: return StoreStatus::unsupported;
    case RBT_UNAVAILABLE: return StoreStatus::unavailable;
    default: return intent == Intent::read ? StoreStatus::read_error : StoreStatus::write_error;
  }
}

PluginStore::PluginStore(std::string spec, PluginLibrary library, std::string path, Logger& logger)
    : spec_(std::move(spec)), path_(std::move(path)), library_(std::move(library)), logger_(logger) {
  host_ = {sizeof host_, path_.c_str(), &logger_, log_line};
}

PluginStore::~PluginStore() {
  mapped_.reset();  // its registrations, before the memory goes
  if (handle_ != nullptr) calls().close(handle_);
}

Result<std::unique_ptr<Store>> PluginStore::create(std::string spec, const PluginOptions& options,
                                                   const StoreEnvironment& environment) {
  auto library = PluginLibrary::load(options.path);
  if (!library) return failure(std::move(library.error()));
  std::unique_ptr<PluginStore> store(
      new PluginStore(std::move(spec), std::move(*library), options.path, environment.logger));
  if (auto opened = store->open(options); !opened) return failure(std::move(opened.error()));
  if (auto described = store->describe(); !described) return failure(std::move(described.error()));
  if (auto mapped = store->map(); !mapped) return failure(std::move(mapped.error()));
  store->identity_ = store->own_identity_.value_or(Identity{});
  if (!store->own_identity_) store->identity_ = fresh_identity(environment.random);
  return std::unique_ptr<Store>(std::move(store));
}

Error PluginStore::said(std::string_view what, const std::string& reason) const {
  const char* const help = calls().help;
  return {ErrorKind::invalid_argument,
          fmt::format("plugin '{}' ({}): {}: {}{}{}", path_, printable(calls().name, 64), what, reason,
                      help != nullptr ? "; its options: " : "", help != nullptr ? printable(help) : std::string())};
}

Error PluginStore::unfit(std::string_view what) const {
  return {ErrorKind::unsupported,
          fmt::format("plugin '{}' ({}): describe(): {}", path_, printable(calls().name, 64), what)};
}

Result<void> PluginStore::open(const PluginOptions& options) {
  std::vector<struct rbt_option> passed;
  for (const auto& [key, value] : options.options)
    passed.push_back({key.c_str(), value.c_str()});
  Text text{};
  if (calls().open(&host_, passed.data(), passed.size(), &handle_, text.data(), text.size()) == 0) return {};
  handle_ = nullptr;
  return failure(said("it refuses to open", words(text)));
}

Result<void> PluginStore::describe() {
  struct rbt_description description {};
  description.struct_size = sizeof description;
  Text text{};
  if (calls().describe(handle_, &description, text.data(), text.size()) != 0)
    return failure(said("it cannot describe itself", words(text)));
  const auto shift = BlockShift::of(description.block_size);
  if (!shift)
    return failure(unfit(fmt::format("block_size is {}, 512, 1024, 2048 or 4096 is expected", description.block_size)));
  if (description.size == 0 || !shift->is_multiple(description.size) || description.size > std::uint64_t{1} << 62)
    return failure(unfit(fmt::format("size is {}, whole blocks of {} are expected, at least one and up to 4 EiB",
                                     description.size, description.block_size)));
  const std::uint64_t most = Geometry{}.transfer_max.value();
  const std::uint64_t transfer = description.transfer_max == 0 ? most : description.transfer_max;
  if (transfer < 4096 || !shift->is_multiple(transfer) || !shift->is_multiple(description.optimal_io))
    return failure(
        unfit(fmt::format("transfer_max is {} and optimal_io {}, whole blocks of {} are expected, and at least "
                          "4096 bytes in a transfer",
                          description.transfer_max, description.optimal_io, description.block_size)));
  for (const auto value : {description.flush, description.fua, description.discard, description.write_zeroes})
    if (value > RBT_NATIVE) return failure(unfit(fmt::format("an ability is {}, 0 to 2 are expected", value)));
  if (description.flush == RBT_EMULATE)
    return failure(unfit("flush is RBT_EMULATE, which nobody can: RBT_NONE or RBT_NATIVE is expected"));
  geometry_.block_shift = *shift;
  geometry_.blocks = shift->blocks(Bytes(description.size));
  geometry_.read_only = description.read_only != 0;
  geometry_.write_cache = description.flush == RBT_NATIVE;
  geometry_.discard = ability_of(description.discard);
  geometry_.write_zeroes = ability_of(description.write_zeroes);
  geometry_.discard_reads_zero = description.discard_reads_zero != 0 || description.discard == RBT_EMULATE;
  geometry_.optimal_io = std::max(Blocks(1), shift->blocks(Bytes(description.optimal_io)));
  geometry_.transfer_max = Bytes(std::min(transfer, most));
  native_fua_ = description.fua == RBT_NATIVE;
  geometry_.atomic_write = shift->blocks(StagedQueue::kAtomicWrite);
  range_lock_.emplace(geometry_.blocks);
  if (description.has_identity != 0) {
    own_identity_.emplace();
    std::memcpy(own_identity_->data(), description.identity, own_identity_->size());
  }
  return {};
}

Result<void> PluginStore::map() {
  struct rbt_region region {};
  region.struct_size = sizeof region;
  region.fd = -1;
  if (calls().map_region == nullptr || calls().map_region(handle_, &region) != 0) return {};
  const std::uint64_t needed = geometry_.blocks.value() << geometry_.block_shift.value();
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  if (region.base == nullptr || reinterpret_cast<std::uintptr_t>(region.base) % page != 0 || region.size < needed)
    return failure(unfit(fmt::format("its region has {} bytes at {}, {} from a page's beginning are expected",
                                     region.size, fmt::ptr(region.base), needed)));
  if (geometry_.discard == Ability::native || geometry_.write_zeroes == Ability::native)
    return failure(
        unfit("it offers a region, in which rbt itself zeroes: RBT_EMULATE or RBT_NONE is expected for discard "
              "and write_zeroes"));
  const transport::MemorySpan span{static_cast<std::byte*>(region.base), region.size, region.fd, region.fd_offset};
  mapped_.emplace(span, transport::RemoteAccess::none);
  return {};
}

Result<void> PluginStore::prepare(transport::ProtectionDomain& domain, std::uint32_t) {
  if (!mapped_) return {};
  if (auto done = mapped_->ensure(domain); !done)
    return failure(std::move(done.error()).within(fmt::format("store '{}'", spec_)));
  return {};
}

Result<std::unique_ptr<StoreQueue>> PluginStore::open_queue(const StoreQueueContext& context) {
  Text text{};
  void* queue = handle_;
  if (calls().open_queue != nullptr && calls().open_queue(handle_, &queue, text.data(), text.size()) != 0)
    return failure(said("it refuses to open a queue", words(text)));
  std::unique_ptr<PluginQueue> made;
  if (mapped_) {
    made = std::make_unique<MappedPluginQueue>(*this, queue, context);
  } else {
    made = std::make_unique<PluginQueue>(*this, queue, context);
  }
  if (auto started = made->start_threads(); !started) return failure(std::move(started.error()).within(spec_));
  return std::unique_ptr<StoreQueue>(std::move(made));
}

}  // namespace rbt::target
