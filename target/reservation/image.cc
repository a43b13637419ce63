#include "target/reservation/image.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/crc.hpp>
#include <cstring>

#include "common/nvme/endian.h"

namespace rbt::target {

namespace {

using nvme::Le16;
using nvme::Le32;
using nvme::Le64;

constexpr std::array<char, 16> kSignature{'r', 'b', 't', ' ', 'r', 'e', 's', 'e',
                                          'r', 'v', 'a', 't', 'i', 'o', 'n', 's'};
constexpr std::uint16_t kVersion = 1;
constexpr std::uint32_t kNobody = 0xffffffff;

struct Header {
  std::array<char, 16> signature;
  Le16 version;
  std::uint8_t persists;
  std::uint8_t type;  // RTYPE; 0: nothing is reserved
  Le32 generation;
  Le32 registrants;
  Le32 holder;  // which of them; kNobody: none of its own
  std::array<std::byte, 16> identity;
  std::array<std::byte, 16> reserved48;
};
static_assert(sizeof(Header) == 64 && nvme::WireType<Header>);
static_assert(offsetof(Header, generation) == 20 && offsetof(Header, holder) == 28 && offsetof(Header, identity) == 32);

struct Entry {
  std::array<std::uint8_t, 16> host;
  Le64 key;
};
static_assert(sizeof(Entry) == 24 && nvme::WireType<Entry>);

constexpr std::size_t kChecksumBytes = sizeof(Le32);  // crc32c of all that is before it

std::uint32_t crc32c(std::span<const std::byte> bytes) {
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
  crc.process_bytes(bytes.data(), bytes.size());
  return crc.checksum();
}

tl::unexpected<Error> wrong(std::string what) {
  return failure(ErrorKind::mismatch, std::move(what));
}

}  // namespace

std::vector<std::byte> encode_reservation_image(const ReservationImage& image) {
  const ReservationState nothing;
  const ReservationState& state = image.state.persists ? image.state : nothing;
  Header header{.signature = kSignature,
                .version = Le16(kVersion),
                .persists = static_cast<std::uint8_t>(state.persists ? 1 : 0),
                .type = static_cast<std::uint8_t>(state.type ? static_cast<unsigned>(*state.type) : 0u),
                .generation = Le32(state.generation),
                .registrants = Le32(static_cast<std::uint32_t>(state.registrants.size())),
                .holder = Le32(kNobody),
                .identity = image.identity,
                .reserved48 = {}};
  std::vector<std::byte> bytes(sizeof header + state.registrants.size() * sizeof(Entry) + kChecksumBytes);
  for (std::size_t i = 0; i < state.registrants.size(); ++i) {
    const auto& each = state.registrants[i];
    const Entry entry{each.host.bytes(), Le64(each.key)};
    std::memcpy(&bytes[sizeof header + i * sizeof entry], &entry, sizeof entry);
    if (state.type && !nvme::is_all_registrants(*state.type) && each.host == state.holder)
      header.holder = Le32(static_cast<std::uint32_t>(i));
  }
  std::memcpy(bytes.data(), &header, sizeof header);
  const auto body = std::span(bytes).first(bytes.size() - kChecksumBytes);
  const Le32 checksum(crc32c(body));
  std::memcpy(&bytes[body.size()], &checksum, sizeof checksum);
  return bytes;
}

Result<ReservationImage> parse_reservation_image(std::span<const std::byte> bytes) {
  const auto header = nvme::read_wire<Header>(bytes);
  if (!header || bytes.size() < sizeof(Header) + kChecksumBytes)
    return wrong(fmt::format("it has {} bytes, {} are the least", bytes.size(), sizeof(Header) + kChecksumBytes));
  if (header->signature != kSignature) return wrong("it does not begin with \"rbt reservations\"");
  if (header->version.get() != kVersion)
    return wrong(fmt::format("it has version {}, {} is the only one", header->version.get(), kVersion));
  const std::size_t count = header->registrants.get();
  const std::size_t expected = sizeof(Header) + count * sizeof(Entry) + kChecksumBytes;
  if (count > ReservationState::kRegistrantsMax || bytes.size() != expected)
    return wrong(fmt::format("it has {} bytes for {} registrants, at most {}", bytes.size(), count,
                             ReservationState::kRegistrantsMax));
  const auto body = bytes.first(bytes.size() - kChecksumBytes);
  if (nvme::read_wire<Le32>(bytes.subspan(body.size()))->get() != crc32c(body)) return wrong("its checksum is wrong");

  // From here on it is what somebody wrote, and perhaps not we.
  ReservationImage image{.identity = header->identity, .state = {}};
  ReservationState& state = image.state;
  state.generation = header->generation.get();
  state.persists = header->persists == 1;
  for (std::size_t i = 0; i < count; ++i) {
    const auto entry = nvme::read_wire<Entry>(bytes.subspan(sizeof(Header) + i * sizeof(Entry)));
    const nvme::HostId host(entry->host);
    if (host.is_zero() || entry->key.get() == 0 || state.find(host) != nullptr)
      return wrong(fmt::format("its registrant {} is none", i));
    state.registrants.push_back({host, entry->key.get()});
  }
  const std::uint32_t holder = header->holder.get();
  if (header->type != 0) {
    if (header->type > static_cast<unsigned>(nvme::ReservationType::exclusive_access_all))
      return wrong(fmt::format("there is no reservation of type {}", header->type));
    state.type = static_cast<nvme::ReservationType>(header->type);
  }
  const bool one_holds = state.type && !nvme::is_all_registrants(*state.type);
  if (one_holds ? holder >= count : holder != kNobody || (state.type && count == 0))
    return wrong("nobody holds its reservation");
  if (one_holds) state.holder = state.registrants[holder].host;
  if (header->persists > 1 || (!state.persists && state != ReservationState()))
    return wrong("it keeps what does not persist");
  return image;
}

}  // namespace rbt::target
