#include "target/registers.h"

namespace rbt::target {

using nvme::Configuration;
using nvme::Property;
using nvme::PropertyAccess;
using nvme::refuse;
using nvme::Shutdown;
using nvme::ShutdownStatus;
using nvme::StatusCode;

namespace {

// A reset waits for the I/O queues to be torn down, which is bounded by 5 s: 15 * 500 ms leaves a margin.
constexpr std::uint8_t kTimeoutHalfSeconds = 15;

constexpr unsigned kSqeShift = 6;  // 64 bytes
constexpr unsigned kCqeShift = 4;  // 16 bytes

}  // namespace

Registers::Registers(ControllerKind kind, std::uint32_t queue_entries_max) noexcept
    : kind_(kind),
      capabilities_(nvme::Capabilities{}
                        .with_queue_entries_max(queue_entries_max)
                        .with_contiguous_queues_required()
                        .with_timeout_half_seconds(kTimeoutHalfSeconds)
                        .with_nvm_command_set()) {}

nvme::Expected<std::uint64_t> Registers::get(const PropertyAccess& access) const noexcept {
  const auto size = nvme::property_size(access.offset);
  if (!size || *size != access.size) return refuse(StatusCode::invalid_field);
  switch (static_cast<Property>(access.offset)) {
    case Property::capabilities: return capabilities_.raw;
    case Property::version: return std::uint64_t{version().raw};
    case Property::configuration: return std::uint64_t{configuration_.raw};
    case Property::status: return std::uint64_t{status_.raw};
    case Property::subsystem_reset:  // CAP.NSSRS is 0
    case Property::ready_timeouts:   // CAP.CRMS is 0
      break;
  }
  return refuse(StatusCode::invalid_field);
}

nvme::Expected<Registers::Effect> Registers::set(const PropertyAccess& access) noexcept {
  const auto size = nvme::property_size(access.offset);
  if (!size || *size != access.size || static_cast<Property>(access.offset) != Property::configuration)
    return refuse(StatusCode::invalid_field);
  return configure({static_cast<std::uint32_t>(access.value)});
}

bool Registers::servable(Configuration configuration) const noexcept {
  // A discovery controller has no I/O queues, so the sizes of their entries say nothing.
  const bool sizes_fit = kind_ == ControllerKind::discovery ||
                         (configuration.sqe_size_shift() == kSqeShift && configuration.cqe_size_shift() == kCqeShift);
  return sizes_fit && configuration.page_shift() == 0 && configuration.arbitration() == 0 &&
         configuration.command_set() == 0;
}

Registers::Effect Registers::configure(Configuration wanted) noexcept {
  const Configuration before = configuration_;
  configuration_ = wanted;
  if (before.enabled() && !wanted.enabled()) {  // Base 2.0, 3.7.2: controller level reset
    resetting_ = true;
    return Effect::reset;
  }
  if (!before.enabled() && wanted.enabled()) {
    // A host that does not wait for the end of a reset has it ended now.
    resetting_ = false;
    const bool served = servable(wanted);
    status_ = served ? nvme::ControllerStatus{}.with_ready(true) : nvme::ControllerStatus{}.with_fatal();
    return served ? Effect::enabled : Effect::none;
  }
  if (before.shutdown() == Shutdown::none && wanted.shutdown() != Shutdown::none) {
    // Nothing is cached here that a flush of the host's has not already made durable: complete at once.
    status_ = status_.with_shutdown(ShutdownStatus::complete);
    return Effect::shut_down;
  }
  if (before.shutdown() != Shutdown::none && wanted.shutdown() == Shutdown::none)
    status_ = status_.with_shutdown(ShutdownStatus::none);
  return Effect::none;
}

void Registers::finish_reset() noexcept {
  if (!resetting_) return;
  resetting_ = false;
  status_ = nvme::ControllerStatus{};
}

}  // namespace rbt::target
