// nbdkit-rbt-plugin.so: nbdkit's callbacks. C on the outside: nothing is thrown across, failures are told by
// nbdkit_error() and, for requests, nbdkit_set_error().

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <memory>

#include "tools/nbdkit-plugin/nbdkit_log.h"
#include "tools/nbdkit-plugin/volume.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace rbt::tools {
namespace {

using initiator::Ending;
using initiator::Namespace;
using initiator::Operation;
using initiator::SharedDisk;
using nvme::ForceUnitAccess;

struct Plugin {
  VolumeOptions options;
  NbdkitLogger logger;
  Complaints complaints;
  std::unique_ptr<Volume> volume;
};
// nbdkit gives config() and its like no pointer of ours: the one global there is. Made by load(), gone with unload().
std::unique_ptr<Plugin> plugin;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

/// One client's connection.
struct Client {
  std::shared_ptr<SharedDisk> disk;
  std::string description;
};

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
    plugin->volume = std::make_unique<Volume>(plugin->options, plugin->logger);
    return told(plugin->volume->probe());
  });
}

int after_fork() {
  return guarded(-1, [] { return told(plugin->volume->start()); });
}

void cleanup() {
  plugin->volume.reset();
}

void dump_plugin() {
  std::printf("rbt_fabrics=rdma shm\nrbt_requests_max=%u\n", SharedDisk::kRequestsMax);
}

// ---- a client

void* open_client(int /*readonly*/) {
  return guarded<void*>(nullptr, []() -> void* {
    auto disk = plugin->volume->open();
    if (!disk) {
      nbdkit_error("%s", disk.error().message().c_str());
      return nullptr;
    }
    auto client = std::make_unique<Client>();
    client->disk = std::move(*disk);
    const initiator::Session& session = client->disk->session();
    client->description =
        fmt::format("{}, namespace {}: {}, serial {}", session.uri().nqn->text(), client->disk->space().nsid.value(),
                    session.controller().model, session.controller().serial);
    return client.release();
  });
}

void close_client(void* handle) {
  guarded(0, [&] {
    delete static_cast<Client*>(handle);
    return 0;
  });
}

std::int64_t get_size(void* handle) {
  return static_cast<std::int64_t>(space_of(handle).size().value());
}

const char* export_description(void* handle) {
  return static_cast<Client*>(handle)->description.c_str();
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
// One controller for all of them, whose Flush covers what was done on every queue.
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
      "[uri=]URI        (required) nvme+rdma://HOST[:4420]/NQN[/NSID][?queues=N&hostnqn=NQN&hostid=UUID]\n"
      "                            or nvme+shm:///NQN[/NSID][?socket=PATH&queues=N]\n"
      "requests=N       Requests in flight at most, 1 to 64 (default: 64); nbdkit -t says how many a client may have\n"
      "connect-timeout=DURATION    (default: 10s)\n"
      "command-timeout=DURATION    Then the target counts as lost (default: 30s)\n"
      "keep-alive=DURATION         (default: 15s)";
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
