#include "initiator/registration.h"

#include <fmt/format.h>

#include <utility>

#include "transport/coherence/userfault.h"

namespace rbt::initiator {

namespace {

class Buffer final : public RegisteredBuffer {
 public:
  Buffer(transport::RegistrationCache& cache, std::shared_ptr<transport::CachedRegion> region) noexcept
      : cache_(cache), region_(std::move(region)) {}
  ~Buffer() override { cache_.remove(region_); }
  [[nodiscard]] const transport::MemorySpan& span() const noexcept override { return region_->span(); }

 private:
  transport::RegistrationCache& cache_;
  std::shared_ptr<transport::CachedRegion> region_;
};

}  // namespace

Result<std::unique_ptr<RegisteredBuffer>> register_buffer(transport::RegistrationCache& cache,
                                                          const transport::MemorySpan& memory) {
  if (memory.data == nullptr || memory.size == 0)
    return failure(ErrorKind::invalid_argument, "registering a buffer: it has no memory");
  auto region = cache.add(memory);
  if (!region)
    return failure(std::move(region.error()).within(fmt::format("registering a buffer of {} bytes", memory.size)));
  return std::make_unique<Buffer>(cache, std::move(*region));
}

transport::RegistrationCacheOptions cache_options(const Environment& environment, const BufferCacheOptions& options) {
  transport::RegistrationCacheOptions out{.automatic = options.mode != BufferCacheOptions::Mode::off,
                                          .bytes_max = options.bytes.value(),
                                          .regions_max = options.regions,
                                          .size_min = options.size_min.value(),
                                          .change_wait_max = options.change_wait_max};
  if (options.mode != BufferCacheOptions::Mode::unwatched)
    out.make_watch = [&clock = environment.clock](const transport::MemorySpan& memory) {
      return transport::coherence::make_userfault_watch(memory, clock);
    };
  return out;
}

}  // namespace rbt::initiator
