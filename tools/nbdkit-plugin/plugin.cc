// nbdkit-rbt-plugin.so: nbdkit's callbacks. C on the outside: nothing is thrown across, failures are told by
// nbdkit_error() and, for requests, nbdkit_set_error().

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <optional>

#include "tools/nbdkit-plugin/export.h"
#include "tools/nbdkit-plugin/nbdkit_log.h"
#include "tools/nbdkit-plugin/shutdown_watch.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace rbt::tools {
namespace {

using initiator::Ending;
using initiator::Namespace;
using initiator::Operation;
using initiator::SharedDisk;
using initiator::VolumeState;
using nvme::ForceUnitAccess;

/// One client's connection.
struct Client {
  std::shared_ptr<SharedDisk> disk;
};

struct Plugin {
  Plugin() = default;
  ~Plugin() { end(); }
  Plugin(const Plugin&) = delete;
  Plugin& operator=(const Plugin&) = delete;

  /// Every thread of ours.
  void end() {
    if (served) served->close();
    watch.reset();
  }

  ExportOptions options;
  NbdkitLogger logger;
  Complaints complaints;
  std::unique_ptr<Export> served;
  std::optional<ShutdownWatch> watch;  // after `served`, for it calls that
  std::mutex clients_mutex;
  std::list<Client> clients;  // guarded by clients_mutex; when nbdkit is told to end it does not close those it has
};
// nbdkit gives config() and its like no pointer of ours: the one global there is. Made by load(), gone with unload().
std::unique_ptr<Plugin> plugin;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

// ---- the border

// What `body` returns, or `otherwise` if it threw: only the allocator does.
template <typename Value, typename Body>
Value guarded(Value otherwise, Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    nbdkit_error("rbt: %s", error.what());
    nbdkit_set_error(ENOMEM);
    return otherwise;
  }
}

int told(const Result<void>& result) {
  if (result) return 0;
  nbdkit_error("%s", result.error().message().c_str());
  return -1;
}

SharedDisk& disk_of(void* handle) {
  return *static_cast<Client*>(handle)->disk;
}
const Namespace& space_of(void* handle) {
  return disk_of(handle).space();
}

ForceUnitAccess fua_of(std::uint32_t flags) {
  return (flags & NBDKIT_FLAG_FUA) != 0 ? ForceUnitAccess::yes : ForceUnitAccess::no;
}

// How a request ended, for nbdkit.
int concluded(void* handle, Operation operation, std::uint32_t count, std::uint64_t offset, const Ending& ending) {
  if (ending.ok()) return 0;
  const Namespace& space = space_of(handle);
  const int error = errno_of(operation, ending, space.read_only);
  nbdkit_set_error(error);
  if (ending.outcome == initiator::Outcome::misaligned)
    plugin->complaints.complain(fmt::format(
        "{} of {} bytes at byte {}: requests must be whole blocks of {} bytes, as block_size tells clients; "
        "--filter=blocksize serves those that do not keep to it",
        name(operation), count, offset, space.block_size()));
  else if (error != ENOTSUP)  // then nbdkit does it another way
    plugin->complaints.complain(
        fmt::format("{} of {} bytes at byte {}: {}", name(operation), count, offset, describe(ending)));
  return -1;
}

// ---- the process

void load() {
  guarded(0, [] {
    plugin = std::make_unique<Plugin>();
    return 0;
  });
}

void unload() {
  plugin.reset();
}

int config(const char* key, const char* value) {
  return guarded(-1, [&] { return told(set_parameter(plugin->options, key, value)); });
}

int config_complete() {
  return guarded(-1, [] { return told(complete(plugin->options)); });
}

int get_ready() {
  return guarded(-1, [] {
    auto& options = plugin->options.disk.volume;
    options.on_state = [mine = plugin.get()](VolumeState state, const Error*) {
      if (state == VolumeState::lost)
        mine->watch->watch(true);
      else if (state == VolumeState::live || state == VolumeState::failed || state == VolumeState::closed)
        mine->watch->watch(false);
    };
    plugin->served = std::make_unique<Export>(plugin->options, plugin->logger);
    return told(plugin->served->probe());
  });
}

int after_fork() {
  return guarded(-1, [] {
    plugin->watch.emplace([mine = plugin.get()] { mine->served->give_up_when_lost(); });
    return told(plugin->served->start());
  });
}

// nbdkit unmaps us next. A client that it accepted at the last moment and has not counted may still come to open(), which
// refuses it.
void cleanup() {
  guarded(0, [] {
    plugin->end();
    const std::lock_guard lock(plugin->clients_mutex);
    plugin->clients.clear();
    return 0;
  });
}

void dump_plugin() {
  std::printf("rbt_fabrics=rdma shm\nrbt_requests_max=%u\n", SharedDisk::kRequestsMax);
}

// ---- a client

void* open_client(int /*readonly*/) {
  return guarded<void*>(nullptr, []() -> void* {
    auto disk = plugin->served->open();
    if (!disk) {
      nbdkit_error("%s", disk.error().message().c_str());
      return nullptr;
    }
    const std::lock_guard lock(plugin->clients_mutex);
    return &plugin->clients.emplace_back(Client{std::move(*disk)});
  });
}

void close_client(void* handle) {
  guarded(0, [&] {
    std::list<Client> gone;  // destroyed without the lock: the last client of a failed disk ends it
    const std::lock_guard lock(plugin->clients_mutex);
    const auto found = std::find_if(plugin->clients.begin(), plugin->clients.end(),
                                    [handle](const Client& client) { return &client == handle; });
    if (found != plugin->clients.end()) gone.splice(gone.begin(), plugin->clients, found);
    return 0;
  });
}

std::int64_t get_size(void* handle) {
  return static_cast<std::int64_t>(space_of(handle).size().value());
}

const char* export_description(void* /*handle*/) {
  return plugin->served->description().c_str();
}

// The largest request is not the namespace's largest transfer: what is larger is cut, and a client that kept to MDTS would
// zero a disk in pieces of 1 MiB. 32 MiB is what NBD's clients may send unasked.
int block_size(void* handle, std::uint32_t* minimum, std::uint32_t* preferred, std::uint32_t* maximum) {
  static constexpr std::uint32_t kMaximum = 32 * kMiB;
  const Namespace& space = space_of(handle);
  const std::uint64_t optimal = std::min<std::uint64_t>(space.optimal_io.value(), kMaximum)
                                << space.block_shift.value();
  *minimum = space.block_size();
  *maximum = kMaximum;
  *preferred = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(std::bit_ceil(optimal), 4096, kMaximum));
  return 0;
}

int can_write(void* handle) {
  return space_of(handle).read_only ? 0 : 1;
}
int can_trim(void* handle) {
  return space_of(handle).abilities.discard && !space_of(handle).read_only ? 1 : 0;
}
int can_zero(void* handle) {
  return space_of(handle).abilities.write_zeroes ? 1 : 0;
}
// Write Zeroes moves no data: never slower than a write. Where there is none, nbdkit refuses fast zeroing by itself.
int can_fast_zero(void* /*handle*/) {
  return 1;
}
int can_flush(void* /*handle*/) {
  return 1;
}
int is_rotational(void* /*handle*/) {
  return 0;
}
int can_fua(void* /*handle*/) {
  return NBDKIT_FUA_NATIVE;
}
// One queue for all of them.
int can_multi_conn(void* /*handle*/) {
  return 1;
}
// nbdkit reads and forgets: that fills the target's cache, and is all that NVMe has for it.
int can_cache(void* /*handle*/) {
  return NBDKIT_CACHE_EMULATE;
}

// ---- its requests

int pread(void* handle, void* buffer, std::uint32_t count, std::uint64_t offset, std::uint32_t /*flags*/) {
  return guarded(-1, [&] {
    return concluded(handle, Operation::read, count, offset,
                     disk_of(handle).read({static_cast<std::byte*>(buffer), count}, Bytes(offset)));
  });
}

int pwrite(void* handle, const void* buffer, std::uint32_t count, std::uint64_t offset, std::uint32_t flags) {
  return guarded(-1, [&] {
    return concluded(
        handle, Operation::write, count, offset,
        disk_of(handle).write({static_cast<const std::byte*>(buffer), count}, Bytes(offset), fua_of(flags)));
  });
}

int flush(void* handle, std::uint32_t /*flags*/) {
  return guarded(-1, [&] { return concluded(handle, Operation::flush, 0, 0, disk_of(handle).flush()); });
}

int trim(void* handle, std::uint32_t count, std::uint64_t offset, std::uint32_t flags) {
  return guarded(-1, [&] {
    return concluded(handle, Operation::discard, count, offset,
                     disk_of(handle).discard(Bytes(offset), Bytes(count), fua_of(flags)));
  });
}

// Zeroed blocks read as zeroes whether or not they are deallocated (NVM 1.0, 3.2.8): may_trim is Deallocate.
int zero(void* handle, std::uint32_t count, std::uint64_t offset, std::uint32_t flags) {
  const auto deallocate = (flags & NBDKIT_FLAG_MAY_TRIM) != 0 ? nvme::Deallocate::yes : nvme::Deallocate::no;
  return guarded(-1, [&] {
    return concluded(handle, Operation::write_zeroes, count, offset,
                     disk_of(handle).write_zeroes(Bytes(offset), Bytes(count), deallocate, fua_of(flags)));
  });
}

nbdkit_plugin make_table() {
  nbdkit_plugin table{};
  table.name = "rbt";
  table.longname = "rbt: disks over NVMe/RDMA or shared memory";
  table.version = RBT_VERSION;
  table.description = "A namespace of an NVMe over Fabrics target (RDMA), or of rbt-target over shared memory";
  table.magic_config_key = "uri";
  table.config_help =
      "[uri=]URI        (required) nvme+rdma://HOST[:4420]/NQN[/NSID][?hostnqn=NQN&hostid=UUID]\n"
      "                            or nvme+shm:///NQN[/NSID][?socket=PATH]\n"
      "requests=N       Requests in flight at most, 1 to 64 (default: 64); nbdkit -t says how many a client may have\n"
      "on-loss=hold|fail|SECONDS   Requests of a lost target wait for it, fail, or wait so long (default: hold)\n"
      "connect-timeout=DURATION    For each step of an attempt to connect (default: 10s)\n"
      "command-timeout=DURATION    Then the target counts as lost (default: 30s)\n"
      "keep-alive=DURATION         (default: 5s)";
  table.load = load;
  table.unload = unload;
  table.config = config;
  table.config_complete = config_complete;
  table.get_ready = get_ready;
  table.after_fork = after_fork;
  table.cleanup = cleanup;
  table.dump_plugin = dump_plugin;
  table.open = open_client;
  table.close = close_client;
  table.get_size = get_size;
  table.export_description = export_description;
  table.block_size = block_size;
  table.can_write = can_write;
  table.can_trim = can_trim;
  table.can_zero = can_zero;
  table.can_fast_zero = can_fast_zero;
  table.can_flush = can_flush;
  table.is_rotational = is_rotational;
  table.can_fua = can_fua;
  table.can_multi_conn = can_multi_conn;
  table.can_cache = can_cache;
  table.pread = pread;
  table.pwrite = pwrite;
  table.flush = flush;
  table.trim = trim;
  table.zero = zero;
  return table;
}

nbdkit_plugin table = make_table();  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables): nbdkit writes to it

}  // namespace
}  // namespace rbt::tools

NBDKIT_REGISTER_PLUGIN(rbt::tools::table)
