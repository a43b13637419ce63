#include "initiator/present/nbd_netlink.h"

#include <fmt/format.h>
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <utility>

namespace rbt::initiator::nbd {

namespace {

constexpr std::size_t kAnswerMax = 8192;

Error nbd_error(int error, const std::string& what) {
  if (error == EPERM) return Error::from_errno(error, what, "NBD devices need CAP_SYS_ADMIN: run it as root");
  if (error == EBUSY) return Error::from_errno(error, what, "somebody else has it: `lsblk`, `nbd-client -c`");
  return Error::from_errno(error, what, "what the kernel saw is in `dmesg`");
}

}  // namespace

/// Header, generic header, attributes; each padded to 4 bytes.
class Netlink::Message {
 public:
  Message(std::uint16_t type, std::uint8_t command, std::uint32_t sequence) {
    nlmsghdr header{};
    header.nlmsg_type = type;
    header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    header.nlmsg_seq = sequence;
    append(&header, sizeof header);
    const genlmsghdr generic{.cmd = command, .version = NBD_GENL_VERSION, .reserved = 0};
    append(&generic, sizeof generic);
  }
  template <typename T>
  void number(std::uint16_t attribute, T value) {
    const std::size_t at = begin(attribute);
    append(&value, sizeof value);
    end(at);
  }
  void text(std::uint16_t attribute, const std::string& value) {
    const std::size_t at = begin(attribute);
    append(value.c_str(), value.size() + 1);
    end(at);
  }
  [[nodiscard]] std::size_t begin(std::uint16_t attribute) {
    const std::size_t at = bytes_.size();
    const nlattr header{.nla_len = 0, .nla_type = attribute};
    append(&header, sizeof header);
    return at;
  }
  void end(std::size_t at) {
    const auto length = static_cast<std::uint16_t>(bytes_.size() - at);
    std::memcpy(bytes_.data() + at, &length, sizeof length);
    bytes_.resize((bytes_.size() + 3) & ~std::size_t{3});
  }
  [[nodiscard]] std::span<const std::byte> bytes() {
    const auto length = static_cast<std::uint32_t>(bytes_.size());
    std::memcpy(bytes_.data(), &length, sizeof length);
    return bytes_;
  }

 private:
  void append(const void* from, std::size_t size) {
    const auto* const bytes = static_cast<const std::byte*>(from);
    bytes_.insert(bytes_.end(), bytes, bytes + size);
  }
  std::vector<std::byte> bytes_;
};

namespace {

using Attribute = std::pair<std::uint16_t, std::span<const std::byte>>;

// The attribute at the front of `rest`, which is then behind it. False: there is none.
bool next_attribute(std::span<const std::byte>& rest, Attribute& out) {
  nlattr header{};
  if (rest.size() < sizeof header) return false;
  std::memcpy(&header, rest.data(), sizeof header);
  if (header.nla_len < sizeof header || header.nla_len > rest.size()) return false;
  out = {static_cast<std::uint16_t>(header.nla_type & NLA_TYPE_MASK),
         rest.subspan(sizeof header, header.nla_len - sizeof header)};
  rest = rest.subspan(std::min<std::size_t>(rest.size(), NLA_ALIGN(header.nla_len)));
  return true;
}

template <typename T>
T value_of(std::span<const std::byte> from) {
  T value{};
  if (from.size() >= sizeof value) std::memcpy(&value, from.data(), sizeof value);
  return value;
}

}  // namespace

Netlink::Netlink(Netlink&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), family_(other.family_), sequence_(other.sequence_) {}

Netlink::~Netlink() {
  if (fd_ >= 0) ::close(fd_);
}

Result<Netlink> Netlink::open() {
  const int fd = ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
  if (fd < 0) return errno_failure(errno, "opening generic netlink");
  Netlink out(fd);
  Message message(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, ++out.sequence_);
  message.text(CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME);
  const int error = out.ask(message, [&](const Attribute& attribute) {
    if (attribute.first == CTRL_ATTR_FAMILY_ID) out.family_ = value_of<std::uint16_t>(attribute.second);
  });
  if (error == ENOENT || (error == 0 && out.family_ == 0))
    return rbt::failure(
        ErrorKind::unsupported,
        "the kernel's NBD client is not there: load it with `modprobe nbd` (or build CONFIG_BLK_DEV_NBD)");
  if (error != 0) return rbt::failure(nbd_error(error, "asking the kernel for NBD"));
  return out;
}

template <typename OnAttribute>
int Netlink::ask(Message& message, OnAttribute on_attribute) {
  const std::span<const std::byte> request = message.bytes();
  if (::send(fd_, request.data(), request.size(), 0) < 0) return errno;
  while (true) {
    alignas(nlmsghdr) std::array<std::byte, kAnswerMax> answer;  // NOLINT(*-member-init): written by recv
    const ssize_t got = ::recv(fd_, answer.data(), answer.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno;
    std::span<const std::byte> rest(answer.data(), static_cast<std::size_t>(got));
    while (rest.size() >= sizeof(nlmsghdr)) {
      const auto header = value_of<nlmsghdr>(rest);
      if (header.nlmsg_len < sizeof header || header.nlmsg_len > rest.size()) return EBADMSG;
      const auto body = rest.first(header.nlmsg_len).subspan(sizeof header);
      rest = rest.subspan(std::min<std::size_t>(rest.size(), NLMSG_ALIGN(header.nlmsg_len)));
      if (header.nlmsg_seq != sequence_) continue;
      if (header.nlmsg_type == NLMSG_ERROR) return -value_of<std::int32_t>(body);
      if (body.size() < sizeof(genlmsghdr)) continue;
      auto attributes = body.subspan(sizeof(genlmsghdr));
      for (Attribute attribute; next_attribute(attributes, attribute);)
        on_attribute(attribute);
    }
  }
}

Result<std::uint32_t> Netlink::configure(std::uint8_t command, const Settings& settings, std::string what) {
  Message message(family_, command, ++sequence_);
  if (settings.number) message.number(NBD_ATTR_INDEX, *settings.number);
  if (settings.size) message.number(NBD_ATTR_SIZE_BYTES, settings.size->value());
  if (settings.block_size != 0) message.number(NBD_ATTR_BLOCK_SIZE_BYTES, std::uint64_t{settings.block_size});
  if (settings.flags != 0) message.number(NBD_ATTR_SERVER_FLAGS, settings.flags);
  if (settings.timeout) message.number(NBD_ATTR_TIMEOUT, static_cast<std::uint64_t>(settings.timeout->count()));
  if (settings.dead_connections)
    message.number(NBD_ATTR_DEAD_CONN_TIMEOUT, static_cast<std::uint64_t>(settings.dead_connections->count()));
  if (!settings.identifier.empty()) message.text(NBD_ATTR_BACKEND_IDENTIFIER, settings.identifier);
  if (!settings.sockets.empty()) {
    const std::size_t all = message.begin(NBD_ATTR_SOCKETS);
    for (const int fd : settings.sockets) {
      const std::size_t one = message.begin(NBD_SOCK_ITEM);
      message.number(NBD_SOCK_FD, static_cast<std::uint32_t>(fd));
      message.end(one);
    }
    message.end(all);
  }
  std::uint32_t number = settings.number.value_or(~std::uint32_t{0});
  const int error = ask(message, [&](const Attribute& attribute) {
    if (attribute.first == NBD_ATTR_INDEX) number = value_of<std::uint32_t>(attribute.second);
  });
  if (error != 0) return rbt::failure(nbd_error(error, what));
  if (number == ~std::uint32_t{0})
    return rbt::failure(ErrorKind::protocol, what + ": the kernel does not say which device it is");
  return number;
}

Result<std::uint32_t> Netlink::connect(const Settings& settings) {
  return configure(
      NBD_CMD_CONNECT, settings,
      settings.number ? fmt::format("connecting /dev/nbd{}", *settings.number) : "connecting an NBD device");
}

Result<void> Netlink::reconfigure(const Settings& settings) {
  auto done =
      configure(NBD_CMD_RECONFIGURE, settings, fmt::format("reconfiguring /dev/nbd{}", settings.number.value_or(0)));
  if (!done) return rbt::failure(std::move(done.error()));
  return {};
}

Result<void> Netlink::disconnect(std::uint32_t number) {
  auto done = configure(NBD_CMD_DISCONNECT, {.number = number}, fmt::format("disconnecting /dev/nbd{}", number));
  if (!done) return rbt::failure(std::move(done.error()));
  return {};
}

Result<bool> Netlink::connected(std::uint32_t number) {
  Message message(family_, NBD_CMD_STATUS, ++sequence_);
  message.number(NBD_ATTR_INDEX, number);
  std::optional<bool> out;
  const int error = ask(message, [&](const Attribute& attribute) {
    if (attribute.first != NBD_ATTR_DEVICE_LIST) return;
    auto items = attribute.second;
    for (Attribute item; next_attribute(items, item);) {
      auto parts = item.second;
      for (Attribute part; next_attribute(parts, part);)
        if (part.first == NBD_DEVICE_CONNECTED) out = value_of<std::uint8_t>(part.second) != 0;
    }
  });
  if (error != 0) return rbt::failure(nbd_error(error, fmt::format("asking for the state of /dev/nbd{}", number)));
  if (!out) return rbt::failure(ErrorKind::not_found, fmt::format("there is no /dev/nbd{}", number));
  return *out;
}

}  // namespace rbt::initiator::nbd
