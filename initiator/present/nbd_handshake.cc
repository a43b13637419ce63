#include "initiator/present/nbd_handshake.h"

#include <algorithm>

#include "initiator/present/nbd_protocol.h"

namespace rbt::initiator::nbd {

namespace {

constexpr std::uint64_t kMagic = 0x4E42444D41474943;        // "NBDMAGIC"
constexpr std::uint64_t kOptionMagic = 0x49484156454F5054;  // "IHAVEOPT"
constexpr std::uint64_t kReplyMagic = 0x0003E889045565A9;

constexpr std::uint16_t kFixedNewstyle = 1U << 0;  // handshake and client flags are the same two
constexpr std::uint16_t kNoZeroes = 1U << 1;

enum Option : std::uint32_t { kExportName = 1, kAbort = 2, kList = 3, kInfo = 6, kGo = 7 };
constexpr std::uint32_t kAck = 1;
constexpr std::uint32_t kServer = 2;
constexpr std::uint32_t kInfoReply = 3;
constexpr std::uint32_t kErrorUnsupportedOption = (1U << 31) + 1;
constexpr std::uint32_t kErrorInvalidOption = (1U << 31) + 3;
constexpr std::uint32_t kErrorUnknownExport = (1U << 31) + 6;
constexpr std::uint16_t kInfoExport = 0;
constexpr std::uint16_t kInfoBlockSize = 3;

}  // namespace

Handshake::Handshake(const Export& about) : about_(about) {
  input_.reserve(64);
  output_.reserve(256);
  put(kMagic);
  put(kOptionMagic);
  put(static_cast<std::uint16_t>(kFixedNewstyle | kNoZeroes));
}

std::size_t Handshake::feed(std::span<const std::byte> input) {
  std::size_t used = 0;
  while (state_ < State::transmission) {
    const std::size_t take = std::min(wanted_ - input_.size(), input.size() - used);
    const auto piece = input.subspan(used, take);
    input_.insert(input_.end(), piece.begin(), piece.end());
    used += take;
    if (input_.size() < wanted_) break;
    if (state_ == State::client_flags)
      on_client_flags();
    else if (state_ == State::option)
      on_option_header();
    else
      on_option();
    input_.clear();
  }
  return used;
}

void Handshake::on_client_flags() {
  const auto flags = get_be<std::uint32_t>(input_);
  if ((flags & ~std::uint32_t{kFixedNewstyle | kNoZeroes}) != 0 || (flags & kFixedNewstyle) == 0) {
    state_ = State::failed;
    return;
  }
  no_zeroes_ = (flags & kNoZeroes) != 0;
  state_ = State::option;
  wanted_ = 16;
}

void Handshake::on_option_header() {
  const std::span<const std::byte> header(input_);
  option_ = get_be<std::uint32_t>(header.subspan(8));
  const auto size = get_be<std::uint32_t>(header.subspan(12));
  if (get_be<std::uint64_t>(header) != kOptionMagic || size > kOptionMax || ++options_ > kOptionsMax) {
    state_ = State::failed;
    return;
  }
  input_.clear();
  wanted_ = size;
  state_ = State::option_data;
  if (size == 0) on_option();
}

void Handshake::on_option() {
  state_ = State::option;
  wanted_ = 16;
  switch (option_) {
    case kExportName: on_export_name(); return;
    case kAbort:
      reply(kAck, 0);
      state_ = State::aborted;
      return;
    case kList:
      if (!input_.empty()) return reply(kErrorInvalidOption, 0);
      reply(kServer, 4);
      put(std::uint32_t{0});  // the length of the name ""
      reply(kAck, 0);
      return;
    case kInfo:
    case kGo: on_info(); return;
    default: reply(kErrorUnsupportedOption, 0);
  }
}

// Has no way to say no.
void Handshake::on_export_name() {
  if (!input_.empty()) {
    state_ = State::failed;
    return;
  }
  put(about_.size);
  put(about_.flags);
  if (!no_zeroes_) output_.resize(output_.size() + 124);
  state_ = State::transmission;
}

// Name length, name, number of wishes, wishes.
void Handshake::on_info() {
  const std::span<const std::byte> data(input_);
  if (data.size() < 6) return reply(kErrorInvalidOption, 0);
  const auto name = get_be<std::uint32_t>(data);
  if (name > data.size() - 6) return reply(kErrorInvalidOption, 0);
  const auto wishes = get_be<std::uint16_t>(data.subspan(4 + name));
  if (data.size() - 6 - name != 2 * std::size_t{wishes}) return reply(kErrorInvalidOption, 0);
  if (name != 0) return reply(kErrorUnknownExport, 0);
  bool block_size = false;
  for (std::size_t i = 0; i < wishes; ++i)
    block_size = block_size || get_be<std::uint16_t>(data.subspan(6 + 2 * i)) == kInfoBlockSize;
  reply(kInfoReply, 12);
  put(kInfoExport);
  put(about_.size);
  put(about_.flags);
  if (block_size) {
    reply(kInfoReply, 14);
    put(kInfoBlockSize);
    put(about_.block_min);
    put(about_.block_preferred);
    put(about_.block_max);
  }
  reply(kAck, 0);
  if (option_ == kGo) state_ = State::transmission;
}

template <typename T>
void Handshake::put(T value) {
  std::array<std::byte, sizeof(T)> bytes{};
  put_be(std::span(bytes), value);
  output_.insert(output_.end(), bytes.begin(), bytes.end());
}

void Handshake::reply(std::uint32_t type, std::size_t data_size) {
  put(kReplyMagic);
  put(option_);
  put(type);
  put(static_cast<std::uint32_t>(data_size));
}

}  // namespace rbt::initiator::nbd
