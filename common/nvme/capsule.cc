#include "common/nvme/capsule.h"

namespace rbt::nvme {

std::string_view name(AdminOpcode opcode) noexcept {
  switch (opcode) {
    case AdminOpcode::get_log_page: return "Get Log Page";
    case AdminOpcode::identify: return "Identify";
    case AdminOpcode::abort: return "Abort";
    case AdminOpcode::set_features: return "Set Features";
    case AdminOpcode::get_features: return "Get Features";
    case AdminOpcode::async_event_request: return "Asynchronous Event Request";
    case AdminOpcode::namespace_management: return "Namespace Management";
    case AdminOpcode::firmware_commit: return "Firmware Commit";
    case AdminOpcode::firmware_download: return "Firmware Image Download";
    case AdminOpcode::self_test: return "Device Self-test";
    case AdminOpcode::namespace_attachment: return "Namespace Attachment";
    case AdminOpcode::keep_alive: return "Keep Alive";
    case AdminOpcode::fabrics: return "Fabrics";
    case AdminOpcode::format_nvm: return "Format NVM";
    case AdminOpcode::security_send: return "Security Send";
    case AdminOpcode::security_receive: return "Security Receive";
    case AdminOpcode::sanitize: return "Sanitize";
    case AdminOpcode::get_lba_status: return "Get LBA Status";
  }
  return {};
}

std::string_view name(IoOpcode opcode) noexcept {
  switch (opcode) {
    case IoOpcode::flush: return "Flush";
    case IoOpcode::write: return "Write";
    case IoOpcode::read: return "Read";
    case IoOpcode::write_uncorrectable: return "Write Uncorrectable";
    case IoOpcode::compare: return "Compare";
    case IoOpcode::write_zeroes: return "Write Zeroes";
    case IoOpcode::dataset_management: return "Dataset Management";
    case IoOpcode::verify: return "Verify";
    case IoOpcode::reservation_register: return "Reservation Register";
    case IoOpcode::reservation_report: return "Reservation Report";
    case IoOpcode::reservation_acquire: return "Reservation Acquire";
    case IoOpcode::reservation_release: return "Reservation Release";
    case IoOpcode::copy: return "Copy";
    case IoOpcode::fabrics: return "Fabrics";
  }
  return {};
}

std::string_view name(FabricsType type) noexcept {
  switch (type) {
    case FabricsType::property_set: return "Property Set";
    case FabricsType::connect: return "Connect";
    case FabricsType::property_get: return "Property Get";
    case FabricsType::authentication_send: return "Authentication Send";
    case FabricsType::authentication_receive: return "Authentication Receive";
    case FabricsType::disconnect: return "Disconnect";
  }
  return {};
}

}  // namespace rbt::nvme
