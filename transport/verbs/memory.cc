#include "transport/verbs/memory.h"

#include <fmt/format.h>
#include <infiniband/verbs.h>

#include <cerrno>

#include "transport/verbs/errors.h"

namespace rbt::transport::verbs {

namespace {

int access_flags(RemoteAccess access, bool writable) noexcept {
  // A page that this process may not write cannot be registered with LOCAL_WRITE (EFAULT), and needs no more than none.
  const int local = writable ? IBV_ACCESS_LOCAL_WRITE : 0;
  switch (access) {
    case RemoteAccess::none: return local;
    case RemoteAccess::read: return local | IBV_ACCESS_REMOTE_READ;
    case RemoteAccess::write: return IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
    case RemoteAccess::read_write: return IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
  }
  return local;
}

}  // namespace

Result<std::unique_ptr<MemoryRegion>> Region::create(ibv_pd* domain, std::string_view device, Logger& logger,
                                                     const MemorySpan& memory, RemoteAccess access) {
  ibv_mr* const region = ibv_reg_mr(domain, memory.data, memory.size, access_flags(access, memory.writable));
  if (region == nullptr) return failure(registration_failed(errno, memory.size, device));
  return std::unique_ptr<MemoryRegion>(new Region(memory, region, logger));
}

Region::Region(const MemorySpan& memory, ibv_mr* region, Logger& logger)
    : MemoryRegion(memory, region->lkey, region->rkey), region_(region), logger_(logger) {}

Region::~Region() {
  const std::size_t length = region_->length;
  const std::string device = region_->context->device->name;
  if (const int error = ibv_dereg_mr(region_); error != 0)
    logger_.error("{}", Error::from_errno(error, fmt::format("ibv_dereg_mr of {} bytes on {}", length, device),
                                          "the memory stays pinned, and reachable by its key, until this process ends")
                            .message());
}

}  // namespace rbt::transport::verbs
