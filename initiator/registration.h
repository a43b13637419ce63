#pragma once
// The session's registered buffers: explicit ones and those that uses have made (transport/memory/registration_cache.h).

#include <memory>

#include "common/result.h"
#include "initiator/initiator.h"
#include "transport/memory/registration_cache.h"

namespace rbt::initiator {

/// Registers `memory` exactly. `cache` outlives the buffer. Thread-safe.
[[nodiscard]] Result<std::unique_ptr<RegisteredBuffer>> register_buffer(transport::RegistrationCache& cache,
                                                                        const transport::MemorySpan& memory);

/// What the session's options mean for its cache.
[[nodiscard]] transport::RegistrationCacheOptions cache_options(const Environment& environment,
                                                                const BufferCacheOptions& options);

}  // namespace rbt::initiator
