#pragma once
// The server's side of NBD's fixed newstyle handshake, as a function from bytes to bytes.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace rbt::initiator::nbd {

/// What a client is told of the one export that there is. It has the name "".
struct Export {
  std::uint64_t size = 0;  ///< bytes
  std::uint16_t flags = 0;
  std::uint32_t block_min = 512;
  std::uint32_t block_preferred = 4096;
  std::uint32_t block_max = 0;
};

/// One client's. Nothing here depends on how the bytes are cut. What a client may send is bounded: kOptionsMax options
/// of kOptionMax bytes each.
class Handshake {
 public:
  static constexpr std::size_t kOptionsMax = 64;
  static constexpr std::size_t kOptionMax = 4096 + 64;  // a name has 4096 bytes at most

  enum class State : std::uint8_t {
    client_flags,  ///< woken by 4 bytes
    option,        ///< woken by an option's 16 bytes
    option_data,   ///< woken by the option's data
    transmission,  ///< over: what follows are requests
    aborted,       ///< the client wants no more; the output is still to be sent
    failed,        ///< not a client of this protocol: hang up
  };

  /// The server speaks first: its greeting is in output().
  explicit Handshake(const Export& about);
  /// Takes what it can use; the rest, in State::transmission, is the first request.
  std::size_t feed(std::span<const std::byte> input);
  [[nodiscard]] State state() const noexcept { return state_; }
  /// To be sent. The caller removes what it has sent.
  [[nodiscard]] std::vector<std::byte>& output() noexcept { return output_; }
  [[nodiscard]] const std::vector<std::byte>& output() const noexcept { return output_; }

 private:
  void on_client_flags();
  void on_option_header();
  void on_option();
  void on_export_name();
  void on_info();
  template <typename T>
  void put(T value);
  void reply(std::uint32_t type, std::size_t data_size);

  Export about_;
  State state_ = State::client_flags;
  std::vector<std::byte> input_;  // of what state_ waits for
  std::size_t wanted_ = 4;
  std::vector<std::byte> output_;
  bool no_zeroes_ = false;
  std::size_t options_ = 0;
  std::uint32_t option_ = 0;
};

}  // namespace rbt::initiator::nbd
