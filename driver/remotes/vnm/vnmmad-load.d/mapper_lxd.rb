# Network interfaces of machines whose driver is called lxd. OpenNebula's network drivers load every file in this directory.
#
# They ask the hypervisor for the name of an interface on the host; for a driver they do not know that is virsh. It need not be asked: the
# container's interface gets the name that OpenNebula has given it, TARGET.
module VNMMAD

    module VNMNetwork

        # What all interfaces have in common, which the drivers of 6.10 and later rely on; before there is nothing of the kind.
        base = if const_defined?(:NicLXD, false)
                   NicLXD.superclass
               else
                   const_defined?(:Nic, false) ? Nic : Hash
               end

        # An interface of a container.
        class NicLXD < base

            VNMNetwork::HYPERVISORS['lxd'] = self

            def initialize
                super(nil)
            end

            # Nothing has to be asked.
            def get_info(_vm)
                nil
            end

            # The interface's name on the host.
            def get_tap(_vm)
                self[:tap] = self[:target]
                self
            end

            # LXD limits the bandwidth itself.
            def set_qos(_deploy_id)
                nil
            end

        end

    end

end
